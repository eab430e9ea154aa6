//! Connections to ports of the sandbox, with servers in its network.

use std::fs::File;
use std::io::{Read, Write, copy};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread::Builder;
use std::time::Duration;

use isopod_proto::agent::{StreamOpen, StreamRole};
use isopod_proto::stream::Kind;
use nix::sched::{CloneFlags, setns};
use tokio::time::timeout;

use crate::harness::{Agent, PATIENCE, Stream, with_agent};

const PORT: u32 = 7007;

/// Serves in the agent's network on [`PORT`] of an address.
fn serve(
    agent: &Agent,
    address: &'static str,
    connection: impl Fn(TcpStream) + Send + Sync + 'static,
) {
    let connection = Arc::new(connection);
    let network = File::open(format!("/proc/{}/ns/net", agent.agent_pid())).unwrap();
    let (listening, listens) = mpsc::channel();
    let server = move || {
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        let listener = TcpListener::bind(format!("{address}:{PORT}")).unwrap();
        listening.send(()).unwrap();
        for accepted in listener.incoming() {
            let accepted = accepted.unwrap();
            let connection = Arc::clone(&connection);
            Builder::new().spawn(move || connection(accepted)).unwrap();
        }
    };
    Builder::new().spawn(server).unwrap();
    listens.recv().unwrap();
}

/// Says what it hears.
fn echo(connection: TcpStream) {
    // A client that is gone hears nothing.
    let _ = copy(&mut &connection, &mut &connection);
    drop(connection);
}

async fn connect(agent: &Agent, port: u32) -> Result<Stream, String> {
    let open = StreamOpen {
        role: StreamRole::STREAM_ROLE_PORT.into(),
        port,
        ..Default::default()
    };
    timeout(PATIENCE, agent.try_open_with(&open)).await.unwrap()
}

#[test]
fn bytes_go_both_ways_and_the_end_of_one_ends_the_other() {
    with_agent(|agent| async move {
        serve(&agent, "127.0.0.1", echo);
        let mut stream = connect(&agent, PORT).await.unwrap();
        stream.send(Kind::Stdin, b"ping").await;
        assert_eq!(stream.until("ping").await, "ping");
        stream.send(Kind::Stdin, &[b'x'; 50_000]).await;
        stream.send(Kind::StdinClosed, b"").await;
        assert_eq!(stream.into_end().await.stdout.len(), 50_000);
    });
}

#[test]
fn server_that_has_said_all_still_listens() {
    with_agent(|agent| async move {
        let (told, hears) = mpsc::channel();
        serve(&agent, "127.0.0.1", move |mut connection| {
            connection.write_all(&[b'y'; 3_000_000]).unwrap();
            connection.shutdown(Shutdown::Write).unwrap();
            let mut heard = String::new();
            connection.read_to_string(&mut heard).unwrap();
            told.send(heard).unwrap();
        });
        let mut stream = connect(&agent, PORT).await.unwrap();
        let mut len = 0;
        loop {
            match stream.receive().await.unwrap() {
                (Kind::Stdout, bytes) => len += bytes.len(),
                (Kind::End, _) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(len, 3_000_000);
        stream.send(Kind::Stdin, b"thanks").await;
        stream.send(Kind::StdinClosed, b"").await;
        assert_eq!(hears.recv_timeout(PATIENCE).unwrap(), "thanks");
    });
}

#[test]
fn server_on_ipv6_alone_is_reached() {
    with_agent(|agent| async move {
        serve(&agent, "[::1]", echo);
        let mut stream = connect(&agent, PORT).await.unwrap();
        stream.send(Kind::Stdin, b"six").await;
        assert_eq!(stream.until("six").await, "six");
    });
}

#[test]
fn port_on_which_nothing_listens_is_refused_with_both_addresses() {
    with_agent(|agent| async move {
        let why = connect(&agent, 9).await.err().unwrap();
        assert!(why.contains("127.0.0.1:9: Connection refused"), "{why}");
        assert!(why.contains("[::1]:9: "), "{why}");
        for port in [0, 65_536, u32::MAX] {
            let why = connect(&agent, port).await.err().unwrap();
            assert!(why.contains("1 to 65535"), "{why}");
        }
    });
}

#[test]
fn connection_that_the_server_resets_is_an_error_and_one_that_the_caller_leaves_is_closed() {
    with_agent(|agent| async move {
        serve(&agent, "127.0.0.1", |mut connection| {
            let mut heard = [0; 4];
            connection.read_exact(&mut heard).unwrap();
            // What it has not read makes the kernel reset the connection.
            if &heard == b"rude" {
                return;
            }
            let end = connection.read(&mut heard);
            assert_eq!(end.unwrap(), 0, "the caller has left");
        });
        let mut stream = connect(&agent, PORT).await.unwrap();
        stream.send(Kind::Stdin, b"rude and unread").await;
        let (kind, why) = stream.receive().await.unwrap();
        assert_eq!(kind, Kind::Error);
        assert!(String::from_utf8(why).unwrap().contains("reset"));
        let mut stream = connect(&agent, PORT).await.unwrap();
        stream.send(Kind::Stdin, b"nice").await;
    });
}

#[test]
fn connections_over_the_limit_are_refused_and_processes_still_have_theirs() {
    with_agent(|agent| async move {
        serve(&agent, "127.0.0.1", echo);
        let mut held = Vec::new();
        let why = loop {
            match connect(&agent, PORT).await {
                Ok(stream) => held.push(stream),
                Err(why) => break why,
            }
        };
        assert!(why.contains("are open"), "{why}");
        assert_eq!(held.len(), 256);
        agent.run("c1", "echo alive").await;
        assert_eq!(agent.output("c1", "").await.stdout, "alive\n");
        drop(held);
        let again = async {
            while connect(&agent, PORT).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, again).await.unwrap();
    });
}

#[test]
fn frame_that_has_no_place_on_a_port_ends_the_connection() {
    with_agent(|agent| async move {
        serve(&agent, "127.0.0.1", echo);
        let mut stream = connect(&agent, PORT).await.unwrap();
        stream.send(Kind::Resize, &[0, 80, 0, 24]).await;
        assert_eq!(stream.receive().await, None);
    });
}
