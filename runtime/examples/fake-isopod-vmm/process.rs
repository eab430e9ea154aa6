//! Processes of this machine in the place of containers and execs.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use isopod_proto::agent::StreamRole;
use isopod_proto::stream::Kind;
use rustix::process::{Pid, Signal};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::OwnedReadHalf;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use ttrpc::Code;
use ttrpc::error::get_rpc_status;

use super::stream::receive;
use super::{Output, Reply, lock, refuse};

/// A process that a container or an exec stands for.
pub(super) struct Process {
    pub(super) asked: Asked,
    pub(super) pid: Mutex<Option<i32>>,
    pub(super) exit: watch::Sender<Option<i32>>,
    sender: Mutex<Option<mpsc::Sender<Output>>>,
    pub(super) output: Mutex<Option<mpsc::Receiver<Output>>>,
    /// Who gets a copy of the output; `None` when it has ended.
    copies: Mutex<Option<Vec<mpsc::Sender<Output>>>>,
    input: tokio::sync::Mutex<Option<Input>>,
    pub(super) terminal: Mutex<Terminal>,
}

/// What a process was asked to be.
pub(super) struct Asked {
    pub(super) args: Vec<String>,
    pub(super) terminal: bool,
    pub(super) stdin: bool,
}

/// A terminal's main side, while it has a process, and its size.
#[derive(Default)]
pub(super) struct Terminal {
    main: Option<OwnedFd>,
    size: Option<Winsize>,
}

pub(super) type Input = Box<dyn tokio::io::AsyncWrite + Send + Unpin>;
pub(super) type Pipe = Box<dyn tokio::io::AsyncRead + Send + Unpin>;

impl Process {
    pub(super) fn new(asked: Asked) -> Arc<Self> {
        let (sender, receiver) = mpsc::channel(16);
        Arc::new(Self {
            asked,
            pid: Mutex::new(None),
            exit: watch::Sender::new(None),
            sender: Mutex::new(Some(sender)),
            output: Mutex::new(Some(receiver)),
            copies: Mutex::new(Some(Vec::new())),
            input: tokio::sync::Mutex::new(None),
            terminal: Mutex::default(),
        })
    }

    pub(super) async fn start(self: &Arc<Self>) -> Reply<()> {
        let program = &self.asked.args[0];
        let found = ["", "/bin", "/usr/bin"]
            .iter()
            .any(|dir| Path::new(dir).join(program).exists());
        if !found {
            return refuse(Code::NOT_FOUND, &format!("{program:?} is not in the image"));
        }
        let (mut child, stdout, stderr) = self
            .spawn()
            .await
            .map_err(|error| get_rpc_status(Code::INTERNAL, error))?;
        *lock(&self.pid) = child.id().and_then(|pid| i32::try_from(pid).ok());
        let sender = lock(&self.sender)
            .take()
            .expect("a process is started once");
        let process = Arc::clone(self);
        tokio::spawn(async move {
            tokio::join!(
                process.forward(stdout, Kind::Stdout, &sender),
                process.forward(stderr, Kind::Stderr, &sender),
            );
            lock(&process.copies).take();
        });
        let process = Arc::clone(self);
        tokio::spawn(async move {
            use std::os::unix::process::ExitStatusExt as _;
            let status = child.wait().await.expect("a child that was not waited for");
            let code = status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            process.exit.send_replace(Some(code));
        });
        Ok(())
    }

    pub(super) async fn spawn(&self) -> std::io::Result<(Child, Pipe, Pipe)> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        if self.asked.terminal {
            return self.spawn_on_terminal(command).await;
        }
        command
            .args(&self.asked.args)
            .stdin(if self.asked.stdin {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn()?;
        if let Some(input) = child.stdin.take() {
            *self.input.lock().await = Some(Box::new(input));
        }
        let stdout = child.stdout.take().expect("piped");
        let stderr = child.stderr.take().expect("piped");
        Ok((child, Box::new(stdout), Box::new(stderr)))
    }

    pub(super) async fn spawn_on_terminal(
        &self,
        mut command: Command,
    ) -> std::io::Result<(Child, Pipe, Pipe)> {
        let pty = nix::pty::openpty(None, None)?;
        let (main, side) = (pty.master, pty.slave);
        if let Some(size) = lock(&self.terminal).size {
            tcsetwinsize(&main, size)?;
        }
        command
            .args(["setsid", "--ctty"])
            .args(&self.asked.args)
            .stdin(side.try_clone()?)
            .stdout(side.try_clone()?)
            .stderr(side);
        let child = command.spawn()?;
        let file = |fd: &OwnedFd| {
            Ok::<_, std::io::Error>(tokio::fs::File::from_std(fd.try_clone()?.into()))
        };
        *self.input.lock().await = Some(Box::new(file(&main)?));
        let output = file(&main)?;
        lock(&self.terminal).main = Some(main);
        Ok((child, Box::new(output), Box::new(tokio::io::empty())))
    }

    pub(super) async fn forward(&self, mut pipe: Pipe, kind: Kind, sender: &mpsc::Sender<Output>) {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            let piece = (kind, buffer[..count].to_vec());
            let copies = lock(&self.copies).clone().unwrap_or_default();
            for copy in copies {
                let _gone = copy.send(piece.clone()).await;
            }
            if sender.send(piece).await.is_err() {
                return;
            }
        }
    }

    /// What a stream with this role reads.
    pub(super) fn output(&self, role: StreamRole) -> Option<mpsc::Receiver<Output>> {
        if role != StreamRole::STREAM_ROLE_ATTACH {
            return lock(&self.output).take();
        }
        let (sender, receiver) = mpsc::channel(16);
        if let Some(copies) = lock(&self.copies).as_mut() {
            copies.push(sender);
        }
        Some(receiver)
    }

    pub(super) async fn take_input(&self, mut stream: OwnedReadHalf) -> std::io::Result<()> {
        loop {
            let (kind, payload) = receive(&mut stream).await?;
            let mut input = self.input.lock().await;
            match (kind, input.as_mut()) {
                (Kind::Stdin, Some(input)) => {
                    let _gone = input.write_all(&payload).await;
                    let _gone = input.flush().await;
                }
                (Kind::StdinClosed, _) => *input = None,
                (Kind::Resize, _) => self.resize(&payload)?,
                _ => {}
            }
        }
    }

    pub(super) fn resize(&self, payload: &[u8]) -> std::io::Result<()> {
        let size = Winsize {
            ws_col: u16::from_be_bytes([payload[0], payload[1]]),
            ws_row: u16::from_be_bytes([payload[2], payload[3]]),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let mut terminal = lock(&self.terminal);
        terminal.size = Some(size);
        if let Some(main) = &terminal.main {
            tcsetwinsize(main, size)?;
        }
        Ok(())
    }

    pub(super) fn signal(&self, number: i32) {
        let pid = lock(&self.pid).and_then(Pid::from_raw);
        if let (Some(pid), Some(signal), None) =
            (pid, Signal::from_named_raw(number), *self.exit.borrow())
        {
            let _gone = rustix::process::kill_process_group(pid, signal);
        }
    }

    pub(super) async fn wait(&self) -> i32 {
        let mut exit = self.exit.subscribe();
        let code = exit
            .wait_for(Option::is_some)
            .await
            .expect("the sender is in self");
        code.expect("waited for")
    }
}
