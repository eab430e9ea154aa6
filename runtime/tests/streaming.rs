//! The streaming server and the real crictl, over both transports, on a VMM that boots nothing.

mod fake;

use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::node::{Node, shell};
use isopod_tests::process::{Child, Process};
use isopod_tests::wait::wait_for;
use nix::pty::openpty;
use rustix::termios::{Winsize, tcsetwinsize};

use self::fake::{START_TIMEOUT_MS, on_fake};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];

/// Runs a test with a container that waits, over each transport.
fn on_container(test: impl Fn(&Node, &str, &str) -> Result<()>) -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("streams")?;
        let id = node.start(&pod, shell("main", "exec sleep 1000"))?;
        for transport in TRANSPORTS {
            test(node, &id, transport).context(transport)?;
        }
        Ok(())
    })
}

fn exec(
    node: &Node,
    transport: &str,
    flags: &[&str],
    id: &str,
    command: &[&str],
) -> Result<Command> {
    let arguments = [&["exec", "--transport", transport], flags, &[id], command].concat();
    let mut crictl = node.crictl()?.command(&arguments);
    crictl.stdin(Stdio::null());
    Ok(crictl)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that reads `input` to its end.
fn feed(mut command: Command, input: Vec<u8>) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().context("it is piped")?;
    let writer = thread::Builder::new().spawn(move || stdin.write_all(&input))?;
    let output = child.wait_with_output()?;
    writer.join().expect("it does not panic")?;
    Ok(output)
}

fn wait_until_gone(command_line: &str) -> Result<()> {
    wait_for("the command to be killed", LIMIT, || {
        let mut all = Process::all().into_iter();
        (!all.any(|one| one.command_line == command_line)).then_some(())
    })
}

#[test]
fn exec_has_both_outputs_and_the_exit_code() -> Result<()> {
    on_container(|node, id, transport| {
        let script = ["sh", "-c", "echo out; echo err >&2; exit 42"];
        let output = exec(node, transport, &[], id, &script)?.output()?;
        let err = text(&output.stderr);
        assert_eq!(output.stdout, b"out\n", "{err}");
        assert!(err.starts_with("err\n"), "{err}");
        assert!(err.contains("exit code 42"), "{err}");
        assert!(!output.status.success());
        let output = exec(node, transport, &[], id, &["true"])?.output()?;
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert_eq!(text(&output.stderr), "");
        Ok(())
    })
}

#[test]
fn exec_of_a_command_that_is_not_there_says_so() -> Result<()> {
    on_container(|node, id, transport| {
        let output = exec(node, transport, &[], id, &["no-such-command"])?.output()?;
        let err = text(&output.stderr);
        assert!(!output.status.success());
        assert!(err.contains("no-such-command"), "{err}");
        Ok(())
    })
}

#[test]
fn exec_reads_standard_input_to_its_end() -> Result<()> {
    on_container(|node, id, transport| {
        let input: Vec<u8> = (0..8_000_000_u32).map(|byte| (byte % 251) as u8).collect();
        let cat = exec(node, transport, &["-i"], id, &["cat"])?;
        let output = feed(cat, input.clone())?;
        assert!(output.status.success(), "{}", text(&output.stderr));
        ensure!(
            output.stdout == input,
            "{} bytes came back",
            output.stdout.len()
        );
        Ok(())
    })
}

#[test]
fn terminal_has_the_size_of_the_clients_and_follows_it() -> Result<()> {
    on_container(|node, id, transport| {
        let pty = openpty(None, None)?;
        let (main, side): (OwnedFd, OwnedFd) = (pty.master, pty.slave);
        let size = |ws_col, ws_row| Winsize {
            ws_col,
            ws_row,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&side, size(91, 31))?;
        let script = "until [ \"$(stty size)\" = '31 91' ]; do sleep 0.05; done; echo first; \
                      until [ \"$(stty size)\" = '41 101' ]; do sleep 0.05; done; \
                      read line; echo \"got $line\"; tty; exit 3";
        let crictl = exec(node, transport, &["-i", "-t"], id, &["bash", "-c", script])?;
        // In a session of its own, so that it hears of the new size.
        let mut child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(crictl.get_program())
            .args(crictl.get_args())
            .stdin(side.try_clone()?)
            .stdout(side)
            .stderr(Stdio::piped())
            .spawn()?;
        let mut screen = Screen::new(main.try_clone()?)?;
        screen.wait_for("first")?;
        tcsetwinsize(&main, size(101, 41))?;
        File::from(main.try_clone()?).write_all(b"hello\r")?;
        screen.wait_for("got hello")?;
        screen.wait_for("/dev/pts/")?;
        let status = child.wait()?;
        let mut err = String::new();
        child
            .stderr
            .take()
            .context("it is piped")?
            .read_to_string(&mut err)?;
        assert!(!status.success());
        assert!(err.contains("exit code 3"), "{err}");
        Ok(())
    })
}

/// What appears on a terminal.
struct Screen {
    shown: std::sync::Arc<std::sync::Mutex<String>>,
}

impl Screen {
    fn new(main: OwnedFd) -> Result<Self> {
        let shown = std::sync::Arc::default();
        let seen: std::sync::Arc<std::sync::Mutex<String>> = std::sync::Arc::clone(&shown);
        thread::Builder::new().spawn(move || {
            let mut main = File::from(main);
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = main.read(&mut buffer) {
                let mut seen = seen.lock().expect("nothing panics under it");
                seen.push_str(&text(&buffer[..count]));
            }
        })?;
        Ok(Self { shown })
    }

    fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let shows = || {
            self.shown
                .lock()
                .expect("nothing panics under it")
                .contains(wanted)
        };
        let found = wait_for(wanted, LIMIT, || shows().then_some(()));
        found.with_context(|| format!("{:?}", self.shown))
    }
}

#[test]
fn a_gigabyte_comes_through_without_loss_and_without_memory() -> Result<()> {
    const BYTES: u64 = 1 << 30;
    on_container(|node, id, transport| {
        let count = BYTES.to_string();
        let command = ["head", "-c", &count, "/dev/zero"];
        let mut crictl = exec(node, transport, &[], id, &command)?;
        let before = resident_kib(node.daemon_pid()?)?;
        let begun = Instant::now();
        let mut child = crictl.stdout(Stdio::piped()).spawn()?;
        let mut stdout = child.stdout.take().context("it is piped")?;
        let (mut total, mut most) = (0_u64, before);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let count = stdout.read(&mut buffer)?;
            if count == 0 {
                break;
            }
            ensure!(
                buffer[..count].iter().all(|byte| *byte == 0),
                "after {total} bytes"
            );
            let mark = total >> 27;
            total += count as u64;
            if total >> 27 != mark {
                most = most.max(resident_kib(node.daemon_pid()?)?);
            }
        }
        assert!(child.wait()?.success());
        assert_eq!(total, BYTES);
        println!(
            "{transport}: {:?}, {} KiB more",
            begun.elapsed(),
            most - before
        );
        ensure!(most - before < 32 * 1024, "{before} KiB became {most} KiB");
        Ok(())
    })
}

fn resident_kib(pid: i32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.context("no VmRSS")?.parse()?)
}

#[test]
fn client_that_is_killed_takes_its_command_with_it_and_nothing_else() -> Result<()> {
    on_container(|node, id, transport| {
        // In full flow, and in silence.
        for (script, running) in [
            ("exec yes in-full-flow", "yes in-full-flow"),
            ("exec sleep 555", "sleep 555"),
        ] {
            let mut crictl = exec(node, transport, &["-i"], id, &["sh", "-c", script])?;
            let mut child = Child::new(
                crictl
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()?,
            );
            wait_for("the command to run", LIMIT, || {
                let mut all = Process::all().into_iter();
                all.any(|one| one.command_line == running).then_some(())
            })?;
            child.kill();
            wait_until_gone(running)?;
        }
        assert_eq!(node.exec(id, "echo alive")?, b"alive\n");
        Ok(())
    })
}

#[test]
fn attached_client_sees_output_and_feeds_input() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("attached")?;
        for transport in TRANSPORTS {
            let script = "while read line; do echo \"got $line\"; echo \"err $line\" >&2; done";
            let mut config = shell(transport, script);
            (config.stdin, config.stdin_once) = (true, true);
            let id = node.create(&pod, config)?;
            let attach = ["attach", "--transport", transport, "-i", &id];
            let mut crictl = node.crictl()?.command(&attach);
            let mut child = crictl
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            let mut stdin = child.stdin.take().context("it is piped")?;
            node.cri().start(&id)?;
            stdin.write_all(b"one\ntwo\n")?;
            node.wait_logged(&id, "got two")?;
            drop(stdin);
            let output = child.wait_with_output()?;
            let err = text(&output.stderr);
            assert!(output.status.success(), "{transport}: {err}");
            assert_eq!(text(&output.stdout), "got one\ngot two\n", "{transport}");
            assert_eq!(err, "err one\nerr two\n", "{transport}");
            assert_eq!(node.wait_exited(&id)?.exit_code, 0);
        }
        Ok(())
    })
}
