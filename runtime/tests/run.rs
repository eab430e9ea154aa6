//! `isopod run` as a process, against a real daemon on a VMM that boots nothing.

mod fake;

use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use isopod_tests::node::{Node, image};
use isopod_tests::wait::wait_for;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use self::fake::{START_TIMEOUT_MS, on_fake};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

fn isopod_run(node: &Node, flags: &[&str], command: &[&str]) -> Result<Command> {
    let mut run = node.isopod()?;
    run.arg("run")
        .args(flags)
        .arg(image("busybox"))
        .args(command)
        .stdin(Stdio::null());
    Ok(run)
}

fn output(node: &Node, flags: &[&str], command: &[&str]) -> Result<Output> {
    Ok(isopod_run(node, flags, command)?.output()?)
}

fn shell(node: &Node, flags: &[&str], script: &str) -> Result<Output> {
    output(node, flags, &["sh", "-c", script])
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn assert_no_pod(node: &Node) -> Result<()> {
    assert_eq!(node.cri().pods(None)?, []);
    Ok(())
}

/// A run that goes on beside the test, and dies with it.
struct Running(std::process::Child);

impl Running {
    fn start(mut command: Command) -> Result<Self> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Self(command.spawn()?))
    }

    fn wait_printed(&mut self, text: &str) -> Result<()> {
        let stdout = self.0.stdout.as_mut().context("no pipe")?;
        let mut printed = Vec::new();
        let mut byte = [0];
        while !printed.ends_with(text.as_bytes()) {
            ensure!(stdout.read(&mut byte)? == 1, "{text:?} was not printed");
            printed.push(byte[0]);
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.0.id())?), signal)?)
    }

    fn wait(&mut self) -> Result<ExitStatus> {
        wait_for("the run to end", LIMIT, || self.0.try_wait().ok()?)
    }

    fn errors(&mut self) -> Result<String> {
        let mut text = String::new();
        let stderr = self.0.stderr.as_mut().context("no pipe")?;
        stderr.read_to_string(&mut text)?;
        Ok(text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn output_and_exit_code_are_the_commands_and_nothing_is_left() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let output = shell(node, &[], "echo out; echo err >&2; exit 3")?;
        assert_eq!(output.stdout, b"out\n", "{}", stderr(&output));
        // The pull is announced once; with the image there, nothing but the command is heard.
        let again = shell(node, &[], "echo out; echo err >&2; exit 3")?;
        assert_eq!(again.stdout, b"out\n");
        assert_eq!(stderr(&again), "err\n");
        assert_eq!(
            (output.status.code(), again.status.code()),
            (Some(3), Some(3))
        );
        assert_no_pod(node)
    })
}

#[test]
fn no_byte_of_long_output_is_lost() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let output = shell(node, &[], "seq 1 500000")?;
        let expected: String = (1..=500_000).map(|number| format!("{number}\n")).collect();
        assert!(
            output.stdout == expected.as_bytes(),
            "{} bytes",
            output.stdout.len()
        );
        Ok(())
    })
}

#[test]
fn first_bytes_of_a_command_that_ends_at_once_are_not_lost() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        for _ in 0..20 {
            assert_eq!(output(node, &[], &["echo", "quick"])?.stdout, b"quick\n");
        }
        Ok(())
    })
}

#[test]
fn standard_input_and_its_end_reach_the_command() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let mut command = isopod_run(node, &["-i"], &["sh", "-c", "wc -c; echo done"])?;
        let mut run = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = run.stdin.take().context("no pipe")?;
        stdin.write_all(&vec![b'x'; 3_000_000])?;
        drop(stdin);
        let output = run.wait_with_output()?;
        assert_eq!(output.stdout, b"3000000\ndone\n");
        Ok(())
    })
}

#[test]
fn without_interactive_the_command_has_no_input() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let mut command = isopod_run(node, &[], &["cat"])?;
        let mut run = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let _held_open = run.stdin.take();
        assert_eq!(run.wait_with_output()?.stdout, b"");
        Ok(())
    })
}

#[test]
fn command_that_is_not_there_exits_127_and_leaves_nothing() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let output = output(node, &[], &["no-such-command"])?;
        assert_eq!(output.status.code(), Some(127));
        assert!(
            stderr(&output).contains("no-such-command"),
            "{}",
            stderr(&output)
        );
        assert_no_pod(node)
    })
}

#[test]
fn image_that_may_not_be_pulled_and_daemon_that_is_not_there_exit_125() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let absent = output(node, &["--pull", "never"], &["true"])?;
        assert_eq!(absent.status.code(), Some(125));
        assert!(
            stderr(&absent).contains("--pull=never"),
            "{}",
            stderr(&absent)
        );
        let alone = output(node, &["--socket", "/nonexistent/cri.sock"], &["true"])?;
        assert_eq!(alone.status.code(), Some(125));
        assert!(
            stderr(&alone).contains("isopod serve"),
            "{}",
            stderr(&alone)
        );
        assert_no_pod(node)
    })
}

#[test]
fn container_that_cannot_be_created_exits_125_and_leaves_nothing() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let output = output(node, &["--name", "full"], &["true"])?;
        assert_eq!(output.status.code(), Some(125));
        assert!(stderr(&output).contains("no room"), "{}", stderr(&output));
        assert_no_pod(node)
    })
}

#[test]
fn signal_asks_the_command_to_end() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let script = "trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.1; done";
        let mut run = Running::start(isopod_run(node, &[], &["sh", "-c", script])?)?;
        run.wait_printed("ready\n")?;
        run.signal(Signal::SIGINT)?;
        run.wait_printed("bye\n")?;
        assert_eq!(run.wait()?.code(), Some(9));
        assert_no_pod(node)
    })
}

#[test]
fn second_signal_kills_the_command() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let script = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
        let mut run = Running::start(isopod_run(node, &[], &["sh", "-c", script])?)?;
        run.wait_printed("ready\n")?;
        run.signal(Signal::SIGTERM)?;
        std::thread::sleep(Duration::from_millis(500));
        assert!(run.0.try_wait()?.is_none());
        run.signal(Signal::SIGTERM)?;
        assert_eq!(run.wait()?.code(), Some(137), "{}", run.errors()?);
        assert_no_pod(node)
    })
}

#[test]
fn interrupted_start_leaves_nothing() -> Result<()> {
    on_fake(600_000, |node| {
        let mut run = Running::start(isopod_run(node, &["--name", "mute"], &["true"])?)?;
        wait_for("the machine to start", LIMIT, || {
            (!node.vmms().is_empty()).then_some(())
        })?;
        run.signal(Signal::SIGINT)?;
        assert_eq!(run.wait()?.code(), Some(130));
        wait_for("the machine to be undone", LIMIT, || {
            node.vmms().is_empty().then_some(())
        })?;
        assert_no_pod(node)
    })
}

#[test]
fn reader_that_leaves_ends_the_command() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let mut run = Running::start(isopod_run(node, &[], &["yes"])?)?;
        run.wait_printed("y\n")?;
        drop(run.0.stdout.take());
        assert_eq!(run.wait()?.code(), Some(141), "{}", run.errors()?);
        assert_no_pod(node)
    })
}

#[test]
fn killed_daemon_ends_the_run_with_125() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let mut run = Running::start(isopod_run(
            node,
            &[],
            &["sh", "-c", "echo up; exec sleep 60"],
        )?)?;
        run.wait_printed("up\n")?;
        node.kill_daemon();
        assert_eq!(run.wait()?.code(), Some(125));
        assert!(run.errors()?.contains("left behind"));
        node.start_daemon()
    })
}

#[test]
fn killed_machine_is_an_exit_of_137() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let mut run = Running::start(isopod_run(
            node,
            &[],
            &["sh", "-c", "echo up; exec sleep 60"],
        )?)?;
        run.wait_printed("up\n")?;
        for vmm in node.vmms() {
            kill(Pid::from_raw(vmm.pid), Signal::SIGKILL)?;
        }
        assert_eq!(run.wait()?.code(), Some(137));
        assert!(run.errors()?.contains("may be missing"));
        assert_no_pod(node)
    })
}

#[test]
fn kept_pod_is_named_and_stays() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let output = output(node, &["--keep", "--name", "stay"], &["true"])?;
        assert_eq!(output.status.code(), Some(0));
        let pods = node.cri().pods(None)?;
        assert_eq!(pods.len(), 1);
        assert!(stderr(&output).contains(&pods[0].id), "{}", stderr(&output));
        let name = pods[0]
            .metadata
            .as_ref()
            .map(|metadata| metadata.name.as_str());
        assert_eq!(name, Some("stay"));
        Ok(())
    })
}

#[test]
fn timings_name_every_phase() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let output = output(node, &["--timings"], &["echo", "x"])?;
        let text = stderr(&output);
        for phase in [
            "pull",
            "sandbox",
            "create",
            "start",
            "first output",
            "total",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(phase)),
                "{phase}: {text}"
            );
        }
        Ok(())
    })
}

/// The user's side of a terminal.
struct Terminal {
    main: OwnedFd,
    side: OwnedFd,
}

impl Terminal {
    fn new(columns: u16, rows: u16) -> Result<Self> {
        let pty = openpty(None, None)?;
        tcsetwinsize(&pty.slave, size(columns, rows))?;
        Ok(Self {
            main: pty.master,
            side: pty.slave,
        })
    }

    /// Starts a run on it, as a shell does in a session of its own.
    fn start(&self, command: &Command) -> Result<Running> {
        let mut on_terminal = Command::new("setsid");
        on_terminal
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(self.side.try_clone()?)
            .stdout(self.side.try_clone()?)
            .stderr(self.side.try_clone()?);
        Ok(Running(on_terminal.spawn()?))
    }

    fn type_keys(&self, keys: &[u8]) -> Result<()> {
        Ok(std::fs::File::from(self.main.try_clone()?).write_all(keys)?)
    }

    fn wait_shown(&self, text: &str) -> Result<()> {
        let mut screen = std::fs::File::from(self.main.try_clone()?);
        let mut shown = Vec::new();
        let mut byte = [0];
        while !shown.ends_with(text.as_bytes()) {
            ensure!(screen.read(&mut byte)? == 1, "{text:?} was not shown");
            shown.push(byte[0]);
        }
        Ok(())
    }

    fn modes(&self) -> Result<LocalModes> {
        Ok(tcgetattr(&self.side)?.local_modes)
    }
}

fn size(columns: u16, rows: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

#[test]
fn terminal_is_the_commands_and_is_given_back() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let terminal = Terminal::new(91, 37)?;
        let before = terminal.modes()?;
        let script = "stty size; read line; echo \"<$line>\"; stty size; sleep 60";
        let command = isopod_run(node, &["-it"], &["sh", "-c", script])?;
        let mut run = terminal.start(&command)?;
        terminal.wait_shown("37 91\r\n")?;
        assert!(
            !terminal
                .modes()?
                .intersects(LocalModes::ICANON | LocalModes::ISIG)
        );
        tcsetwinsize(&terminal.side, size(60, 20))?;
        std::thread::sleep(Duration::from_millis(500));
        terminal.type_keys(b"typed\r")?;
        terminal.wait_shown("<typed>\r\n20 60\r\n")?;
        // The key goes to the command's terminal, whose line discipline makes a signal of it.
        terminal.type_keys(b"\x03")?;
        assert_eq!(run.wait()?.code(), Some(130));
        assert_eq!(terminal.modes()?, before);
        assert_no_pod(node)
    })
}

#[test]
fn terminal_that_is_none_is_refused() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let output = output(node, &["-it"], &["true"])?;
        assert_eq!(output.status.code(), Some(125));
        assert!(
            stderr(&output).contains("no terminal"),
            "{}",
            stderr(&output)
        );
        Ok(())
    })
}
