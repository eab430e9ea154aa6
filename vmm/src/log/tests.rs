//! Logs against an agent that is played over a socket pair.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use isopod_proto::STREAM_PORT;
use isopod_proto::agent::{StreamOpen, StreamRole};
use isopod_proto::stream::{HEADER_LEN, Header, Kind, MAX_PAYLOAD};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use protobuf::Message;
use tempfile::TempDir;

use super::timestamp::TIMESTAMP_LEN;
use super::*;
use crate::virtio::vsock::channel;

const LONG: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(100);

/// Answers every connection with one frame and passes on what was asked, and the stream.
struct Agent {
    opened: Receiver<(StreamOpen, UnixStream)>,
    logs: Arc<Logs>,
    _thread: JoinHandle<()>,
}

fn agent(answer: Kind, text: &'static [u8]) -> Agent {
    let (handle, requests) = channel().unwrap();
    let (sender, opened) = mpsc::channel();
    let run = move || {
        while let Ok(request) = requests.requests.recv() {
            assert_eq!(request.port, STREAM_PORT);
            let mut stream = request.stream;
            stream.set_nonblocking(false).unwrap();
            request.answer.send(true).unwrap();
            let mut header = [0; HEADER_LEN];
            stream.read_exact(&mut header).unwrap();
            let header = Header::decode(header).unwrap();
            assert_eq!(header.kind, Kind::Open);
            let mut payload = vec![0; header.len];
            stream.read_exact(&mut payload).unwrap();
            send(&mut stream, answer, text);
            let open = StreamOpen::parse_from_bytes(&payload).unwrap();
            if sender.send((open, stream)).is_err() {
                return;
            }
        }
    };
    Agent {
        opened,
        logs: Arc::new(Logs::new(handle)),
        _thread: Builder::new().name("agent".into()).spawn(run).unwrap(),
    }
}

fn send(stream: &mut UnixStream, kind: Kind, payload: &[u8]) {
    let len = payload.len();
    stream.write_all(&Header { kind, len }.encode()).unwrap();
    stream.write_all(payload).unwrap();
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

/// The lines without their times.
fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path)
        .unwrap()
        .split_terminator('\n')
        .map(|line| line[TIMESTAMP_LEN + 1..].to_owned())
        .collect()
}

async fn written(agent: &Agent, id: &str, bytes: u64) {
    for _ in 0..2_000 {
        if agent.logs.wait(id, Duration::ZERO).await.unwrap().bytes >= bytes {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{bytes} bytes were not written in time");
}

struct Opened {
    agent: Agent,
    stream: UnixStream,
    dir: TempDir,
}

impl Opened {
    async fn new() -> Self {
        let agent = agent(Kind::Opened, b"");
        let dir = TempDir::new().unwrap();
        let file = append(&dir.path().join("0.log"));
        agent.logs.open("box", Some(file)).await.unwrap();
        let (open, stream) = agent.opened.recv().unwrap();
        assert_eq!(open.container_id, "box");
        assert_eq!(open.role, StreamRole::STREAM_ROLE_PRIMARY.into());
        Self { agent, stream, dir }
    }

    fn lines(&self) -> Vec<String> {
        lines(&self.dir.path().join("0.log"))
    }

    async fn ended(&self) -> LogProgress {
        self.agent.logs.wait("box", LONG).await.unwrap()
    }
}

#[tokio::test]
async fn output_is_written_as_cri_lines_until_the_end() {
    let mut log = Opened::new().await;
    send(&mut log.stream, Kind::Stdout, b"hello\nwor");
    send(&mut log.stream, Kind::Stderr, b"bad\n");
    send(&mut log.stream, Kind::Stdout, b"ld\nno newline");
    let before_the_end = log.agent.logs.wait("box", SHORT).await.unwrap();
    assert!(!before_the_end.ended);
    send(&mut log.stream, Kind::End, b"");
    let progress = log.ended().await;
    assert_eq!(
        progress,
        LogProgress {
            ended: true,
            bytes: 26
        }
    );
    assert_eq!(
        log.lines(),
        [
            "stdout F hello",
            "stderr F bad",
            "stdout F world",
            "stdout P no newline"
        ]
    );
}

#[tokio::test]
async fn a_lost_connection_ends_the_log_with_all_that_arrived() {
    let mut log = Opened::new().await;
    let len = 100;
    let header = Header {
        kind: Kind::Stdout,
        len,
    };
    log.stream.write_all(&header.encode()).unwrap();
    log.stream.write_all(b"half a fra").unwrap();
    log.stream.shutdown(Shutdown::Both).unwrap();
    assert!(log.ended().await.ended);
    assert_eq!(log.lines(), ["stdout P half a fra"]);
}

#[tokio::test]
async fn a_malformed_frame_ends_the_log() {
    for bytes in [
        &[99, 0, 0, 0, 0][..],
        &[Kind::Stdout as u8, 255, 255, 255, 255],
        &[Kind::Stdin as u8, 0, 0, 0, 1, 0],
        &[Kind::End as u8, 0, 0, 0, 1, 0],
    ] {
        let mut log = Opened::new().await;
        send(&mut log.stream, Kind::Stdout, b"before\n");
        log.stream.write_all(bytes).unwrap();
        assert!(log.ended().await.ended);
        assert_eq!(log.lines(), ["stdout F before"]);
    }
}

#[tokio::test]
async fn a_refusal_is_reported_and_leaves_no_log() {
    let agent = agent(Kind::Error, b"no such\ncontainer");
    let error = agent.logs.open("box", None).await.unwrap_err();
    let LogError::Stream { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(
        source.to_string(),
        "the agent refuses the stream: no such\\ncontainer"
    );
    let gone = agent.logs.wait("box", SHORT).await.unwrap_err();
    assert!(matches!(gone, LogError::Unknown(_)));
}

#[tokio::test]
async fn an_answer_out_of_place_is_an_error() {
    let agent = agent(Kind::Stdout, b"x");
    let error = agent.logs.open("box", None).await.unwrap_err();
    assert!(matches!(
        error,
        LogError::Stream {
            source: StreamError::OutOfPlace(Kind::Stdout),
            ..
        }
    ));
}

#[tokio::test]
async fn a_second_log_of_a_container_is_refused() {
    let log = Opened::new().await;
    let error = log.agent.logs.open("box", None).await.unwrap_err();
    assert!(matches!(error, LogError::Exists(id) if id == "box"));
}

#[tokio::test]
async fn an_id_that_is_none_is_refused() {
    let agent = agent(Kind::Opened, b"");
    for id in ["", "a/b", "a b", &"x".repeat(CONTAINER_ID_MAX + 1)] {
        let error = agent.logs.open(id, None).await.unwrap_err();
        assert!(matches!(error, LogError::InvalidId(_)));
    }
}

#[tokio::test]
async fn rotation_in_mid_line_loses_nothing_and_cuts_between_lines() {
    let mut log = Opened::new().await;
    send(&mut log.stream, Kind::Stdout, b"first\nsec");
    written(&log.agent, "box", 6).await;
    let rotated = log.dir.path().join("0.log.1");
    std::fs::rename(log.dir.path().join("0.log"), &rotated).unwrap();
    send(&mut log.stream, Kind::Stdout, b"ond\nthi");
    written(&log.agent, "box", 13).await;
    let file = append(&log.dir.path().join("0.log"));
    log.agent.logs.reopen("box", file).await.unwrap();
    send(&mut log.stream, Kind::Stdout, b"rd\n");
    send(&mut log.stream, Kind::End, b"");
    assert!(log.ended().await.ended);
    assert_eq!(lines(&rotated), ["stdout F first", "stdout F second"]);
    assert_eq!(log.lines(), ["stdout F third"]);
}

#[tokio::test]
async fn reopen_without_a_log_is_an_error() {
    let agent = agent(Kind::Opened, b"");
    let file = tempfile::tempfile().unwrap();
    let error = agent.logs.reopen("box", file).await.unwrap_err();
    assert!(matches!(error, LogError::Unknown(_)));
}

#[tokio::test]
async fn a_full_disk_holds_the_container_back_and_loses_no_line() {
    let agent = agent(Kind::Opened, b"");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    agent.logs.open("box", Some(full)).await.unwrap();
    let (_, mut stream) = agent.opened.recv().unwrap();
    let count = 40_000;
    let container = Builder::new().name("container".into()).spawn(move || {
        for first in (0..count).step_by(1_000) {
            let text: String = (first..first + 1_000)
                .map(|n| format!("line {n}\n"))
                .collect();
            send(&mut stream, Kind::Stdout, text.as_bytes());
        }
        send(&mut stream, Kind::End, b"");
    });
    let progress = agent.logs.wait("box", SHORT * 5).await.unwrap();
    assert_eq!(
        progress,
        LogProgress {
            ended: false,
            bytes: 0
        }
    );
    assert!(!container.as_ref().unwrap().is_finished(), "it must wait");
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("0.log");
    agent.logs.reopen("box", append(&path)).await.unwrap();
    assert!(agent.logs.wait("box", LONG).await.unwrap().ended);
    container.unwrap().join().unwrap();
    let expected: Vec<_> = (0..count).map(|n| format!("stdout F line {n}")).collect();
    assert_eq!(lines(&path), expected);
}

#[tokio::test]
async fn a_file_limit_in_mid_line_begins_the_line_anew_in_the_next_file() {
    // A pipe that is full takes part of a batch and then nothing, as a disk does.
    let (mut reader, writer) = std::io::pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let agent = agent(Kind::Opened, b"");
    let file = File::from(OwnedFd::from(writer));
    agent.logs.open("box", Some(file)).await.unwrap();
    let (_, mut stream) = agent.opened.recv().unwrap();
    let container = Builder::new().name("container".into()).spawn(move || {
        for n in 0..200 {
            let text = format!("{n:0>9999}\n");
            send(&mut stream, Kind::Stdout, text.as_bytes());
        }
        send(&mut stream, Kind::End, b"");
    });
    tokio::time::sleep(SHORT).await;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("0.log");
    agent.logs.reopen("box", append(&path)).await.unwrap();
    assert!(agent.logs.wait("box", LONG).await.unwrap().ended);
    container.unwrap().join().unwrap();
    let mut old = String::new();
    reader.read_to_string(&mut old).unwrap();
    assert!(!old.ends_with('\n'), "the first file must end in mid-line");
    let whole = old.matches('\n').count();
    let expected: Vec<_> = (whole..200)
        .map(|n| format!("stdout F {n:0>9999}"))
        .collect();
    assert_eq!(lines(&path), expected);
}

#[tokio::test]
async fn close_ends_a_log_that_waits_for_a_full_disk() {
    let agent = agent(Kind::Opened, b"");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    agent.logs.open("box", Some(full)).await.unwrap();
    let (_, mut stream) = agent.opened.recv().unwrap();
    send(&mut stream, Kind::Stdout, b"stuck\n");
    assert!(!agent.logs.wait("box", SHORT).await.unwrap().ended);
    agent.logs.close("box").await;
    agent.logs.close("box").await;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    agent.logs.open("box", None).await.unwrap();
}

#[tokio::test]
async fn without_a_file_the_output_is_drained() {
    let agent = agent(Kind::Opened, b"");
    agent.logs.open("box", None).await.unwrap();
    let (_, mut stream) = agent.opened.recv().unwrap();
    let container = Builder::new().name("container".into()).spawn(move || {
        for _ in 0..100 {
            send(&mut stream, Kind::Stdout, &[b'x'; MAX_PAYLOAD]);
        }
        send(&mut stream, Kind::End, b"");
    });
    let progress = agent.logs.wait("box", LONG).await.unwrap();
    container.unwrap().join().unwrap();
    assert!(progress.ended);
    assert_eq!(progress.bytes, 100 * MAX_PAYLOAD as u64);
}

#[tokio::test]
async fn finish_waits_for_every_log() {
    let mut log = Opened::new().await;
    assert!(!log.agent.logs.finish(SHORT).await);
    send(&mut log.stream, Kind::Stdout, b"last words");
    drop(log.stream.shutdown(Shutdown::Both));
    assert!(log.agent.logs.finish(LONG).await);
    assert_eq!(log.lines(), ["stdout P last words"]);
}

#[tokio::test]
async fn a_guest_that_does_not_exist_is_reported() {
    let (handle, requests) = channel().unwrap();
    drop(requests);
    let error = Logs::new(handle).open("box", None).await.unwrap_err();
    assert!(matches!(
        error,
        LogError::Stream {
            source: StreamError::Connect(_),
            ..
        }
    ));
}
