//! Exec, attach and port-forward with crictl, into microVMs.

use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::node::{self, Node, Options, shell};
use isopod_tests::process::{Child, resident};
use isopod_tests::streams::forward::{Forward, exchange};
use isopod_tests::streams::terminal::Terminal;
use isopod_tests::streams::{TRANSPORTS, exec, feed, text};
use isopod_tests::wait::wait_for;
use tonic::Code;

/// How long a command in the guest may take to start or to end.
const LIMIT: Duration = Duration::from_secs(120);

/// Bytes that do not repeat within a buffer.
fn bytes(len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from(at * 7 % 251).expect("less than 251"))
        .collect()
}

/// Runs a test with a container that waits.
fn on_container(test: impl FnOnce(&Node, &str, &str) -> Result<()>) -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("streams")?;
        let id = node.start(&pod, shell("main", "exec sleep 100000"))?;
        test(node, &pod, &id)
    })
}

/// Whether a command runs in the container.
fn runs(node: &Node, id: &str, command_line: &str) -> Result<bool> {
    // Not the one that looks for it.
    let script = format!("ps -o args | grep -v grep | grep -c '^{command_line}' || true");
    Ok(text(&node.exec(id, &script)?).trim() != "0")
}

fn wait_running(node: &Node, id: &str, command_line: &str, wanted: bool) -> Result<()> {
    let what = format!("{command_line:?} to run: {wanted}");
    wait_for(&what, LIMIT, || {
        let seen = runs(node, id, command_line).ok()?;
        (seen == wanted).then_some(())
    })
}

#[test]
fn exec_carries_output_input_and_exit_code() -> Result<()> {
    on_container(|node, _pod, id| {
        for transport in TRANSPORTS {
            let script = ["sh", "-c", "echo out; echo err >&2; exit 42"];
            let output = exec(node, transport, &[], id, &script)?.output()?;
            let err = text(&output.stderr);
            assert_eq!(output.stdout, b"out\n", "{transport}: {err}");
            assert!(err.starts_with("err\n"), "{transport}: {err}");
            assert!(err.contains("exit code 42"), "{transport}: {err}");

            let input = bytes(2_000_000);
            let output = feed(exec(node, transport, &["-i"], id, &["cat"])?, input.clone())?;
            let err = text(&output.stderr);
            assert!(output.status.success(), "{transport}: {err}");
            let came = output.stdout.len();
            ensure!(
                output.stdout == input,
                "{transport}: {came} bytes came back"
            );

            let nothing = exec(node, transport, &[], id, &["/no/such/command"])?.output()?;
            let err = text(&nothing.stderr);
            assert!(err.contains("/no/such/command"), "{transport}: {err}");
        }
        Ok(())
    })
}

#[test]
fn exec_on_a_terminal_follows_its_size() -> Result<()> {
    on_container(|node, _pod, id| {
        for transport in TRANSPORTS {
            let crictl = exec(node, transport, &["-i", "-t"], id, &["sh"])?;
            let mut terminal = Terminal::start(&crictl, 91, 31)?;
            let wait_size = |size: &str| {
                format!(
                    "until [ \"$(stty size)\" = '{size}' ]; do sleep 0.1; done; echo now $((6*7))\r"
                )
            };
            terminal.type_in(&wait_size("31 91"))?;
            terminal.wait_said("now 42")?;
            terminal.resize(101, 41)?;
            terminal.type_in(&wait_size("41 101"))?;
            terminal.type_in("echo $((41*3)); tty; exit 3\r")?;
            terminal.wait_said("123")?;
            terminal.wait_said("/dev/pts/")?;
            assert!(!terminal.wait()?.success(), "{transport}");
            terminal.wait_said("exit code 3")?;
        }
        Ok(())
    })
}

#[test]
fn slow_reader_loses_nothing_and_one_that_leaves_takes_its_command_with_it() -> Result<()> {
    const BYTES: usize = 16 << 20;
    on_container(|node, _pod, id| {
        for transport in TRANSPORTS {
            let count = BYTES.to_string();
            let command = ["head", "-c", &count, "/dev/zero"];
            let mut crictl = exec(node, transport, &[], id, &command)?;
            let mut child = crictl.stdout(Stdio::piped()).spawn()?;
            let mut stdout = child.stdout.take().context("it is piped")?;
            // Long enough for every buffer on the way to fill.
            std::thread::sleep(Duration::from_secs(5));
            let mut came = Vec::new();
            stdout.read_to_end(&mut came)?;
            assert!(child.wait()?.success(), "{transport}");
            ensure!(came.len() == BYTES, "{transport}: {} bytes", came.len());

            let flow = exec(node, transport, &[], id, &["yes", transport])?
                .stdout(Stdio::piped())
                .spawn()?;
            let mut flow = Child::new(flow);
            let command_line = format!("yes {transport}");
            wait_running(node, id, &command_line, true)?;
            flow.kill();
            wait_running(node, id, &command_line, false)?;
        }
        Ok(())
    })
}

#[test]
fn much_output_comes_whole_and_makes_nobody_larger() -> Result<()> {
    const BYTES: usize = 128 << 20;
    /// More than any buffer on the way, a fraction of what comes. KiB.
    const SLACK: i64 = 8 * 1024;
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("output")?;
        let id = node.start(&pod, shell("main", "exec sleep 100000"))?;
        let (daemon, vmm) = (node.daemon_pid()?, node.vmm(&pod)?.pid);
        let look = || anyhow::Ok([resident(daemon, false)?, resident(vmm, true)?]);
        // What is loaded once is there.
        node.exec(&id, "head -c 16777216 /dev/zero | wc -c")?;
        let before = look()?;
        let command = ["head", "-c", &BYTES.to_string(), "/dev/zero"];
        let mut child = exec(node, "spdy", &[], &id, &command)?
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdout = child.stdout.take().context("it is piped")?;
        let (mut came, mut most) = (0, before);
        let mut piece = vec![0; 1 << 20];
        loop {
            let mark = came >> 24;
            let count = stdout.read(&mut piece)?;
            if count == 0 {
                break;
            }
            ensure!(
                piece[..count].iter().all(|byte| *byte == 0),
                "after {came} bytes"
            );
            came += count;
            if came >> 24 != mark {
                let now = look()?;
                most = [most[0].max(now[0]), most[1].max(now[1])];
            }
        }
        assert!(child.wait()?.success());
        assert_eq!(came, BYTES);
        for (before, most) in before.into_iter().zip(most) {
            ensure!(most - before < SLACK, "{before} KiB became {most} KiB");
        }
        Ok(())
    })
}

#[test]
fn exec_that_takes_too_long_is_killed_with_all_that_it_started_and_nothing_else() -> Result<()> {
    on_container(|node, _pod, id| {
        // A grandchild that has left its session, and one that ignores being asked.
        let script = "setsid sleep 4444 & (trap '' TERM HUP; sleep 5555) & wait";
        let begun = Instant::now();
        let error = node.cri().exec(id, &["sh", "-c", script], 3).unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(begun.elapsed() >= Duration::from_secs(3));
        wait_running(node, id, "sleep 4444", false)?;
        wait_running(node, id, "sleep 5555", false)?;
        // The command itself is gone when the caller is told.
        let error = node.cri().exec(id, &["sleep", "6666"], 1).unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded, "{error}");
        assert!(!runs(node, id, "sleep 6666")?);
        assert!(runs(node, id, "sleep 100000")?, "the container goes on");
        Ok(())
    })
}

#[test]
fn attached_client_sees_output_and_feeds_input() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("attached")?;
        for transport in TRANSPORTS {
            let script = "while read line; do echo \"got $line\"; echo \"err $line\" >&2; done";
            let mut config = shell(transport, script);
            (config.stdin, config.stdin_once) = (true, true);
            let id = node.create(&pod, config)?;
            let attach = ["attach", "--transport", transport, "-i", &id];
            let mut child = node
                .crictl()?
                .command(&attach)
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

#[test]
fn forwarded_port_reaches_the_guests_own_127_0_0_1() -> Result<()> {
    on_container(|node, pod, id| {
        let page = bytes(1_000_000);
        let command = ["sh", "-c", "mkdir /www && cat > /www/page"];
        let output = feed(exec(node, "spdy", &["-i"], id, &command)?, page.clone())?;
        assert!(output.status.success(), "{}", text(&output.stderr));
        node.exec(
            id,
            "httpd -p 127.0.0.1:8080 -h /www; httpd -p '[::1]:8081' -h /www",
        )?;
        for transport in TRANSPORTS {
            for port in [8080, 8081] {
                let forward = Forward::start(node, transport, pod, port)?;
                for _ in 0..3 {
                    let answer = exchange(forward.connect()?, b"GET /page HTTP/1.0\r\n\r\n")?;
                    let body = answer.len().checked_sub(page.len());
                    let body = body.with_context(|| text(&answer))?;
                    let status = text(&answer[..answer.len().min(64)]);
                    ensure!(
                        status.contains(" 200 OK\r\n"),
                        "{transport} {port}: {status}"
                    );
                    ensure!(
                        answer[body..] == page,
                        "{transport} {port}: another page came"
                    );
                }
            }
            let nothing = Forward::start(node, transport, pod, 9999)?;
            let mut heard = Vec::new();
            let _reset = nothing.connect()?.read_to_end(&mut heard);
            assert_eq!(heard, b"");
            nothing.wait_said("error forwarding port 9999")?;
        }
        Ok(())
    })
}
