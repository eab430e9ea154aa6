//! Output, input and terminals.

use std::time::{Duration, Instant};

use isopod_proto::agent::{ExecProcessRequest, StreamRole};
use isopod_proto::stream::Kind;
use serde_json::{Value, json};

use crate::harness::{Agent, context, request, spec, with_agent};

const PRIMARY: StreamRole = StreamRole::STREAM_ROLE_PRIMARY;
const ATTACH: StreamRole = StreamRole::STREAM_ROLE_ATTACH;

async fn run_with_stdin(agent: &Agent, id: &str, spec: &Value, once: bool) {
    let mut request = request(id, spec);
    (request.stdin, request.stdin_once) = (true, once);
    agent.create_with(request).await.unwrap();
    agent.start_container(id).await.unwrap();
}

fn terminal(args: &[&str]) -> Value {
    let mut spec = spec(args);
    spec["process"]["terminal"] = json!(true);
    spec
}

#[test]
fn output_waits_for_its_primary_sink_and_none_is_lost() {
    with_agent(|agent| async move {
        // More than the pipe holds: the process must wait, and does so without being polled.
        agent.run("c1", "seq 1 200000; echo done >&2").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let output = agent.output("c1", "").await;
        let wanted: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
        assert!(
            output.stdout == wanted,
            "{} of {} bytes",
            output.stdout.len(),
            wanted.len()
        );
        assert_eq!(output.stderr, "done\n");
    });
}

#[test]
fn output_of_a_process_that_has_exited_is_still_delivered() {
    with_agent(|agent| async move {
        agent.run("c1", "echo last words").await;
        agent.wait("c1", "").await.unwrap();
        assert_eq!(agent.output("c1", "").await.stdout, "last words\n");
        // And its end to whoever asks later.
        assert_eq!(agent.output("c1", "").await.stdout, "");
    });
}

#[test]
fn a_primary_that_goes_away_is_followed_by_another_and_the_container_lives() {
    with_agent(|agent| async move {
        agent
            .run(
                "c1",
                "for i in $(seq 1 40); do echo $i; sleep 0.02; done; cat /dev/null",
            )
            .await;
        let mut first = agent.open("c1", "", PRIMARY).await;
        assert!(agent.try_open("c1", "", PRIMARY, false).await.is_err());
        let seen = first.until("5\n").await;
        drop(first);
        let mut second = agent.try_open("c1", "", PRIMARY, false).await;
        while second.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            second = agent.try_open("c1", "", PRIMARY, false).await;
        }
        let rest = second.unwrap().into_end().await.stdout;
        let last_seen: u32 = seen.lines().last().unwrap().parse().unwrap();
        let first_of_rest: u32 = rest.lines().next().unwrap().parse().unwrap();
        // What was on its way to the first one may be lost with it, nothing else.
        assert!(
            first_of_rest > last_seen && first_of_rest <= last_seen + 2,
            "{seen:?} {rest:?}"
        );
        assert!(rest.ends_with("39\n40\n"));
        assert_eq!(agent.wait("c1", "").await.unwrap().exit_code, 0);
    });
}

#[test]
fn an_attached_stream_gets_a_copy_of_what_comes_after_it() {
    with_agent(|agent| async move {
        run_with_stdin(&agent, "c1", &spec(&["cat"]), true).await;
        let mut log = agent.open("c1", "", PRIMARY).await;
        let mut attached = agent.try_open("c1", "", ATTACH, true).await.unwrap();
        attached.send(Kind::Stdin, b"hello\n").await;
        log.until("hello\n").await;
        attached.until("hello\n").await;
        attached.send(Kind::StdinClosed, b"").await;
        assert_eq!(attached.into_end().await.stdout, "");
        assert_eq!(log.into_end().await.stdout, "");
        assert_eq!(agent.wait("c1", "").await.unwrap().exit_code, 0);
    });
}

#[test]
fn stdin_that_is_not_once_survives_its_senders() {
    with_agent(|agent| async move {
        run_with_stdin(
            &agent,
            "c1",
            &spec(&["sh", "-c", "read a; read b; echo $a $b"]),
            false,
        )
        .await;
        let log = agent.open("c1", "", PRIMARY).await;
        for word in ["one\n", "two\n"] {
            let mut attached = agent.try_open("c1", "", ATTACH, true).await.unwrap();
            attached.send(Kind::Stdin, word.as_bytes()).await;
            attached.send(Kind::StdinClosed, b"").await;
        }
        assert_eq!(log.into_end().await.stdout, "one two\n");
    });
}

#[test]
fn stdin_once_ends_when_its_sender_goes_away() {
    with_agent(|agent| async move {
        run_with_stdin(&agent, "c1", &spec(&["sh", "-c", "cat; echo end"]), true).await;
        let log = agent.open("c1", "", PRIMARY).await;
        let mut attached = agent.try_open("c1", "", ATTACH, true).await.unwrap();
        attached.send(Kind::Stdin, b"text ").await;
        drop(attached);
        assert_eq!(log.into_end().await.stdout, "text end\n");
    });
}

#[test]
fn a_process_without_stdin_reads_its_end_at_once() {
    with_agent(|agent| async move {
        let (code, output) = agent
            .outcome("c1", &spec(&["sh", "-c", "cat; echo end"]))
            .await;
        assert_eq!((code, output.stdout.as_str()), (0, "end\n"));
        agent.run("c2", "sleep 1000").await;
        let refused = agent.try_open("c2", "", ATTACH, true).await;
        assert_eq!(refused.err().unwrap(), "the process has no standard input");
    });
}

#[test]
fn a_terminal_is_one_and_can_be_resized() {
    with_agent(|agent| async move {
        let script = "tty; read line; stty size; echo got $line; test -w $(tty)";
        run_with_stdin(&agent, "c1", &terminal(&["sh", "-c", script]), false).await;
        let mut stream = agent.try_open("c1", "", PRIMARY, true).await.unwrap();
        stream.until("/dev/pts/0\r\n").await;
        stream.send(Kind::Resize, &[0, 120, 0, 40]).await;
        stream.send(Kind::Stdin, b"word\n").await;
        let rest = stream.into_end().await.stdout;
        assert!(rest.contains("40 120\r\n"), "{rest}");
        assert!(rest.contains("got word\r\n"), "{rest}");
        assert_eq!(agent.wait("c1", "").await.unwrap().exit_code, 0);
    });
}

#[test]
fn an_exec_can_have_a_terminal_too() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        let exec = ExecProcessRequest {
            container_id: "c1".to_owned(),
            exec_id: "e1".to_owned(),
            args: ["sh", "-c", "tty && read x && exit $x"]
                .map(str::to_owned)
                .to_vec(),
            terminal: true,
            stdin: true,
            ..Default::default()
        };
        agent.client.exec_process(context(), &exec).await.unwrap();
        let mut stream = agent.try_open("c1", "e1", PRIMARY, true).await.unwrap();
        stream.until("/dev/pts/").await;
        stream.send(Kind::Stdin, b"9\n").await;
        stream.into_end().await;
        assert_eq!(agent.wait("c1", "e1").await.unwrap().exit_code, 9);
    });
}

#[test]
fn a_pipe_that_others_hold_does_not_keep_the_stream_open_for_ever() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        agent
            .exec("c1", "e1", &["sh", "-c", "sleep 1000 & echo started"])
            .await
            .unwrap();
        let begin = Instant::now();
        assert_eq!(agent.output("c1", "e1").await.stdout, "started\n");
        assert!(begin.elapsed() < Duration::from_secs(30));
    });
}

#[test]
fn deleting_a_container_closes_its_streams() {
    with_agent(|agent| async move {
        agent.run("c1", "echo x; sleep 1000").await;
        let mut log = agent.open("c1", "", PRIMARY).await;
        log.until("x\n").await;
        let mut attached = agent.open("c1", "", ATTACH).await;
        agent.delete("c1").await.unwrap();
        while let Some((kind, _)) = log.receive().await {
            assert_eq!(kind, Kind::End);
        }
        while let Some((kind, _)) = attached.receive().await {
            assert_eq!(kind, Kind::End);
        }
    });
}

#[test]
fn a_stream_that_asks_for_nonsense_is_told_why() {
    with_agent(|agent| async move {
        agent.run("c1", "sleep 1000").await;
        let unspecified = StreamRole::STREAM_ROLE_UNSPECIFIED;
        for (id, exec_id, role, text) in [
            ("c2", "", PRIMARY, "container c2 does not exist"),
            (
                "c1",
                "e9",
                PRIMARY,
                "exec e9 does not exist in container c1",
            ),
            ("c1", "", unspecified, "no such stream role"),
        ] {
            assert_eq!(
                agent
                    .try_open(id, exec_id, role, false)
                    .await
                    .err()
                    .unwrap(),
                text
            );
        }
    });
}

#[test]
fn a_slow_copy_delays_and_loses_nothing() {
    with_agent(|agent| async move {
        run_with_stdin(
            &agent,
            "c1",
            &spec(&["sh", "-c", "read go; seq 1 300000"]),
            true,
        )
        .await;
        let log = agent.open("c1", "", PRIMARY).await;
        let mut copy = agent.try_open("c1", "", ATTACH, true).await.unwrap();
        copy.send(Kind::Stdin, b"\n").await;
        let slow = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            copy.into_end().await
        };
        let (log, copy) = tokio::join!(log.into_end(), slow);
        assert!(log == copy && log.stdout.ends_with("300000\n"));
    });
}

#[test]
fn a_gigabyte_flows() {
    let megabytes: usize = std::env::var("ISOPOD_MEGABYTES")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(64);
    with_agent(|agent| async move {
        agent
            .run(
                "c1",
                &format!("dd if=/dev/zero bs=1M count={megabytes} 2>/dev/null"),
            )
            .await;
        let mut stream = agent.open("c1", "", PRIMARY).await;
        let (begin, mut bytes) = (Instant::now(), 0);
        while let Some((Kind::Stdout, payload)) = stream.receive().await {
            bytes += payload.len();
        }
        assert_eq!(bytes, megabytes << 20);
        println!("{megabytes} MiB in {:?}", begin.elapsed());
    });
}
