//! One process's standard input.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::{Errno, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use crate::process::Terminal;

/// The pipe or terminal that a process reads from.
#[derive(Debug)]
pub(crate) struct Input {
    /// None once it was closed.
    target: Mutex<Option<Target>>,
    /// Close it when a sender has no more to say.
    once: bool,
}

#[derive(Debug)]
enum Target {
    Pipe(AsyncFd<OwnedFd>),
    Terminal(Arc<Terminal>),
}

impl Input {
    /// A pipe's write end. With `once`, the process reads end-of-file after its first sender;
    /// otherwise senders come and go.
    pub(crate) fn pipe(pipe: AsyncFd<OwnedFd>, once: bool) -> Self {
        Self {
            target: Mutex::new(Some(Target::Pipe(pipe))),
            once,
        }
    }

    /// A terminal, which has no end-of-file but the character that stands for it.
    pub(crate) fn terminal(terminal: Arc<Terminal>) -> Self {
        Self {
            target: Mutex::new(Some(Target::Terminal(terminal))),
            once: false,
        }
    }

    /// Writes all of `bytes`, as fast as the process reads them. What nobody reads any more is
    /// dropped.
    pub(crate) async fn write(&self, mut bytes: &[u8]) {
        let mut target = self.target.lock().await;
        while !bytes.is_empty() {
            let fd = match &*target {
                Some(Target::Pipe(pipe)) => pipe,
                Some(Target::Terminal(terminal)) => terminal.master(),
                None => return,
            };
            match fd
                .async_io(Interest::WRITABLE, |fd| write_some(fd, bytes))
                .await
            {
                Ok(count) => bytes = &bytes[count..],
                // The process closed its end.
                Err(_) => *target = None,
            }
        }
    }

    /// A sender has no more to say, or is gone.
    pub(crate) async fn sender_done(&self) {
        if self.once {
            *self.target.lock().await = None;
        }
    }
}

fn write_some(fd: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match write(fd, bytes) {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}
