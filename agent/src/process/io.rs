//! The pipes or the terminal between a process and the agent.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, fchown, pipe2};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::descriptor::watch;
use crate::stream::{Input, Source};

/// Room in an output pipe, in bytes: what a process can write before it waits for its reader.
const PIPE_BYTES: i32 = 256 * 1024;

/// Pipes could not be made or made asynchronous.
#[derive(Debug, thiserror::Error)]
#[error("setting up a process's {what}")]
pub(crate) struct IoError {
    /// Which part.
    what: &'static str,
    /// Why.
    #[source]
    source: io::Error,
}

fn error(what: &'static str) -> impl Fn(io::Error) -> IoError {
    move |source| IoError { what, source }
}

/// The agent's ends.
#[derive(Debug)]
pub(crate) struct Stdio {
    /// Where output is read from: standard output and error, or the terminal.
    pub(crate) output: Vec<Source>,
    /// Where input is written to.
    pub(crate) input: Option<Input>,
    /// The terminal, to resize it.
    pub(crate) terminal: Option<Arc<Terminal>>,
}

/// The process's ends, in the order of their numbers.
#[derive(Debug)]
pub(crate) struct ChildEnds {
    /// Standard input: a pipe, or `/dev/null`.
    pub(crate) stdin: OwnedFd,
    /// Standard output.
    pub(crate) stdout: OwnedFd,
    /// Standard error.
    pub(crate) stderr: OwnedFd,
}

/// The master side of a pseudo-terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    master: AsyncFd<OwnedFd>,
}

impl Terminal {
    /// The asynchronous descriptor.
    pub(crate) fn master(&self) -> &AsyncFd<OwnedFd> {
        &self.master
    }

    /// Tells the process how large its terminal is, in characters.
    ///
    /// # Errors
    ///
    /// When the terminal is gone.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(self.master.get_ref().as_fd(), size)?)
    }
}

impl Stdio {
    /// Pipes for a process without a terminal. `stdin` keeps one for input, which `once` closes
    /// after its first user. They belong to `owner`, who may open them again (`/dev/stdout`).
    ///
    /// # Errors
    ///
    /// When descriptors run out.
    pub(crate) fn pipes(stdin: bool, once: bool, owner: Uid) -> Result<(Self, ChildEnds), IoError> {
        let (stdout, child_stdout) = output_pipe(owner).map_err(error("stdout"))?;
        let (stderr, child_stderr) = output_pipe(owner).map_err(error("stderr"))?;
        let (input, child_stdin) = if stdin {
            let (read, write) = pipe2(OFlag::O_CLOEXEC)
                .map_err(io::Error::from)
                .map_err(error("stdin"))?;
            fchown(&read, Some(owner), None)
                .map_err(io::Error::from)
                .map_err(error("stdin"))?;
            let write = watch(write, Interest::WRITABLE).map_err(error("stdin"))?;
            (Some(Input::pipe(write, once)), read)
        } else {
            let null = nix::fcntl::open(
                "/dev/null",
                OFlag::O_RDONLY | OFlag::O_CLOEXEC,
                Mode::empty(),
            )
            .map_err(io::Error::from)
            .map_err(error("stdin"))?;
            (None, null)
        };
        let ends = ChildEnds {
            stdin: child_stdin,
            stdout: child_stdout,
            stderr: child_stderr,
        };
        let output = vec![Source::stdout(stdout), Source::stderr(stderr)];
        Ok((
            Self {
                output,
                input,
                terminal: None,
            },
            ends,
        ))
    }

    /// A terminal whose master side the process's starter has sent. It is given to `owner`.
    ///
    /// # Errors
    ///
    /// When it cannot be made asynchronous.
    pub(crate) fn terminal(master: OwnedFd, stdin: bool, owner: Uid) -> Result<Self, IoError> {
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY)
            .map_err(io::Error::from)
            .map_err(error("terminal"))?;
        fchown(slave, Some(owner), None)
            .map_err(io::Error::from)
            .map_err(error("terminal"))?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        let master = watch(master, interest).map_err(error("terminal"))?;
        let terminal = Arc::new(Terminal { master });
        Ok(Self {
            output: vec![Source::terminal(Arc::clone(&terminal))],
            input: stdin.then(|| Input::terminal(Arc::clone(&terminal))),
            terminal: Some(terminal),
        })
    }
}

fn output_pipe(owner: Uid) -> io::Result<(AsyncFd<OwnedFd>, OwnedFd)> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
    fchown(&write, Some(owner), None)?;
    // A smaller pipe works too, only slower: the system may limit their size.
    let _ = fcntl(read.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_BYTES));
    Ok((watch(read, Interest::READABLE)?, write))
}
