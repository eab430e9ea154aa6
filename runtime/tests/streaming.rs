//! The streaming server and the real crictl, over both transports, on a VMM that boots nothing.

mod fake;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::{BufMut as _, BytesMut};
use isopod_spdy::headers::Headers;
use isopod_spdy::testing::ClientEncoder;
use isopod_tests::node::{Node, shell};
use isopod_tests::process::{Child, Process};
use isopod_tests::streams::forward::{Forward, echo, exchange, serve};
use isopod_tests::streams::terminal::Terminal;
use isopod_tests::streams::{TRANSPORTS, exec, feed, text};
use isopod_tests::wait::wait_for;

use self::fake::{START_TIMEOUT_MS, on_fake};

/// How long anything here may take.
const LIMIT: Duration = Duration::from_secs(30);

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
        let script = "until [ \"$(stty size)\" = '31 91' ]; do sleep 0.05; done; echo first; \
                      until [ \"$(stty size)\" = '41 101' ]; do sleep 0.05; done; \
                      read line; echo \"got $line\"; tty; exit 3";
        let crictl = exec(node, transport, &["-i", "-t"], id, &["bash", "-c", script])?;
        let mut terminal = Terminal::start(&crictl, 91, 31)?;
        terminal.wait_said("first")?;
        terminal.resize(101, 41)?;
        terminal.type_in("hello\r")?;
        terminal.wait_said("got hello")?;
        terminal.wait_said("/dev/pts/")?;
        assert!(!terminal.wait()?.success());
        terminal.wait_said("exit code 3")?;
        Ok(())
    })
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

/// Runs a test with a pod, over each transport.
fn on_pod(test: impl Fn(&Node, &str, &str) -> Result<()>) -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("ports")?;
        for transport in TRANSPORTS {
            test(node, &pod, transport).context(transport)?;
        }
        Ok(())
    })
}

#[test]
fn forwarded_port_carries_bytes_both_ways_and_the_end_of_each() -> Result<()> {
    on_pod(|node, pod, transport| {
        let port = serve(echo)?;
        let forward = Forward::start(node, transport, pod, port)?;
        for size in [0, 1, 100_000, 30_000_000] {
            let sent: Vec<u8> = (0..size).map(|at: u32| (at % 253) as u8).collect();
            let heard = exchange(forward.connect()?, &sent)?;
            ensure!(heard == sent, "{} of {size} bytes", heard.len());
        }
        Ok(())
    })
}

#[test]
fn connections_are_forwarded_side_by_side_and_leave_nothing() -> Result<()> {
    on_pod(|node, pod, transport| {
        let port = serve(echo)?;
        let forward = Forward::start(node, transport, pod, port)?;
        for round in 0..5 {
            thread::scope(|scope| {
                let clients: Vec<_> = (0..40_u8)
                    .map(|number| {
                        let sent = vec![number; 50_000];
                        let forward = &forward;
                        scope.spawn(move || {
                            let heard = exchange(forward.connect()?, &sent)?;
                            ensure!(heard == sent, "{} bytes", heard.len());
                            Ok(())
                        })
                    })
                    .collect();
                for client in clients {
                    client.join().expect("it does not panic")?;
                }
                Ok::<_, anyhow::Error>(())
            })
            .with_context(|| format!("round {round}"))?;
        }
        Ok(())
    })
}

#[test]
fn port_on_which_nothing_listens_is_told_to_the_client() -> Result<()> {
    on_pod(|node, pod, transport| {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let forward = Forward::start(node, transport, pod, port)?;
        let mut heard = Vec::new();
        let _reset = forward.connect()?.read_to_end(&mut heard);
        assert!(heard.is_empty());
        forward.wait_said(&format!("error forwarding port {port}"))?;
        forward.wait_said("Connection refused")
    })
}

#[test]
fn server_that_takes_nothing_does_not_stop_the_daemon() -> Result<()> {
    on_pod(|node, pod, transport| {
        // It holds its connections, and reads nothing.
        let held = Mutex::new(Vec::new());
        let port = serve(move |connection| {
            held.lock()
                .expect("nothing panics under it")
                .push(connection);
        })?;
        let forward = Forward::start(node, transport, pod, port)?;
        let mut connection = forward.connect()?;
        connection.set_write_timeout(Some(Duration::from_secs(1)))?;
        let before = resident_kib(node.daemon_pid()?)?;
        let piece = vec![0; 1 << 20];
        let mut sent = 0;
        while let Ok(count) = connection.write(&piece) {
            sent += count;
            ensure!(sent < 1 << 30, "a gigabyte went nowhere");
        }
        let after = resident_kib(node.daemon_pid()?)?;
        ensure!(
            after - before.min(after) < 16 * 1024,
            "{before} KiB became {after} KiB"
        );
        // Another client is served meanwhile.
        let echo = serve(echo)?;
        let other = Forward::start(node, transport, pod, echo)?;
        assert_eq!(exchange(other.connect()?, b"alive")?, b"alive");
        Ok(())
    })
}

/// A session over SPDY that nobody's client has.
fn upgrade(url: &str, protocol: &str) -> Result<TcpStream> {
    let (address, path) = url
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .with_context(|| format!("not a URL: {url}"))?;
    let mut connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(LIMIT))?;
    connection.set_write_timeout(Some(Duration::from_secs(1)))?;
    write!(
        connection,
        "POST /{path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        connection.read_exact(&mut byte)?;
        answer.extend(byte);
    }
    ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", text(&answer));
    Ok(connection)
}

/// What clients send that want to do harm. What comes back is not read.
fn attacks(port: u16) -> Vec<BytesMut> {
    let garbage = BytesMut::from_iter((0..1 << 16).map(|at: u32| (at * 7 % 251) as u8));
    let mut oversized = BytesMut::new();
    // A frame of 16 MiB on a stream that is not there, of which little comes.
    oversized.put_slice(&[0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 1, 2, 3]);
    let mut bomb = BytesMut::new();
    ClientEncoder::new().open_raw(1, 0, &vec![0; 10 << 20], &mut bomb);
    let mut many = BytesMut::new();
    let mut encoder = ClientEncoder::new();
    for number in 0..10_000 {
        let (request, port) = (number.to_string(), port.to_string());
        for (half, kind) in (0..).zip(["error", "data"]) {
            let headers = [
                ("streamtype", kind),
                ("port", &port),
                ("requestid", &request),
            ];
            encoder.open(
                4 * number + 2 * half + 1,
                &Headers::new(&headers),
                &mut many,
            );
        }
    }
    let cut = many.clone().split_to(1000);
    vec![BytesMut::new(), garbage, oversized, bomb, many, cut]
}

#[test]
fn hostile_sessions_leave_nothing_and_move_nobody() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("hostile")?;
        let id = node.start(&pod, shell("main", "exec sleep 1000"))?;
        let port = serve(echo)?;
        let daemon = node.daemon_pid()?;
        let descriptors = || anyhow::Ok(std::fs::read_dir(format!("/proc/{daemon}/fd"))?.count());
        let (files, memory) = (descriptors()?, resident_kib(daemon)?);
        let mut held = Vec::new();
        for attack in attacks(port) {
            let forward = upgrade(&node.cri().port_forward_url(&pod)?, "portforward.k8s.io")?;
            let url = node.cri().exec_url(&id, &["sleep", "4321"])?;
            let exec = upgrade(&url, "v4.channel.k8s.io")?;
            for mut connection in [forward, exec] {
                // The daemon may hang up in the middle, or stop to listen.
                let _refused = connection.write_all(&attack);
                held.push(connection);
            }
            assert_eq!(node.exec(&id, "echo alive")?, b"alive\n");
        }
        let forward = Forward::start(node, "spdy", &pod, port)?;
        assert_eq!(exchange(forward.connect()?, b"alive")?, b"alive");
        let grown = resident_kib(daemon)?.saturating_sub(memory);
        ensure!(grown < 32 * 1024, "{grown} KiB more");
        drop((forward, held));
        wait_until_gone("sleep 4321")?;
        wait_for("the sessions to end", LIMIT, || {
            (descriptors().ok()? <= files + 2).then_some(())
        })?;
        assert_eq!(node.daemon_pid()?, daemon);
        Ok(())
    })
}

#[test]
fn pod_that_does_not_run_has_no_ports() -> Result<()> {
    on_fake(START_TIMEOUT_MS, |node| {
        let pod = node.busybox_pod("stopped")?;
        let port = serve(echo)?;
        let forward = Forward::start(node, "spdy", &pod, port)?;
        assert_eq!(exchange(forward.connect()?, b"alive")?, b"alive");
        node.cri().stop_pod(&pod)?;
        let mut heard = Vec::new();
        let _reset = forward.connect()?.read_to_end(&mut heard);
        assert!(heard.is_empty());
        forward.wait_said("error forwarding port")?;
        let crictl = node.crictl()?;
        let error = crictl.fails(&["port-forward", &pod, &format!(":{port}")])?;
        assert!(error.message.contains("FailedPrecondition"), "{error}");
        let error = crictl.fails(&["port-forward", "0123", ":80"])?;
        assert!(error.message.contains("NotFound"), "{error}");
        Ok(())
    })
}
