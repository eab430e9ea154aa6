//! Connections to a sandbox's ports, as streams of a SPDY connection: `portforward.k8s.io`
//! (k8s.io/client-go, tools/portforward).
//!
//! For each connection the client opens two streams with the same `requestid`: `error`, on which it
//! hears what went wrong, and `data`. Both name the `port`.
//!
//! ```text
//!           ┌── data ──> TCP connection in the sandbox
//! client <──┤<─ data ─── its directions end alone
//!           └<─ error ── ends after both, with a sentence if something failed
//! ```

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use isopod_spdy::decode::ReadError;
use isopod_spdy::{Connection, Headers, Incoming, Stream, StreamReader, StreamWriter};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{Instrument as _, debug};

use super::OpenError;
use super::activity::Activity;
use super::session::{CLOSE_TIMEOUT, Session};
use crate::chain::chain;
use crate::vm::{Output, ProcessInput, ProcessOutput, ProcessStream, StreamError};

/// The sub-protocol.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";

/// Most connections of a client at a time; each has two streams.
const CONNECTIONS_MAX: usize = 256;

/// How long the second stream of a connection may take to come (as long as kubelets wait).
const PAIR_TIMEOUT: Duration = Duration::from_secs(30);

/// How often those that wait too long are looked for.
const PAIR_CHECK: Duration = Duration::from_secs(5);

/// Longest name of a connection, in bytes: clients count.
const REQUEST_ID_MAX: usize = 64;

/// Connects to a port of a sandbox.
#[derive(Clone)]
pub(crate) struct Ports(Arc<dyn Connect>);

/// What [`Ports::new`] takes.
trait Connect: Fn(u16) -> Connecting + Send + Sync {}

impl<F: Fn(u16) -> Connecting + Send + Sync> Connect for F {}

type Connecting = BoxFuture<'static, Result<ProcessStream, OpenError>>;

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ports")
    }
}

impl Ports {
    /// The ports of a sandbox, by how they are connected to.
    pub(crate) fn new<F, T>(connect: F) -> Self
    where
        F: Fn(u16) -> T + Send + Sync + 'static,
        T: Future<Output = Result<ProcessStream, OpenError>> + Send + 'static,
    {
        Self(Arc::new(move |port| -> Connecting {
            Box::pin(connect(port))
        }))
    }
}

/// One client's SPDY connection.
#[derive(Debug)]
pub(super) struct PortForward {
    pub(super) session: Session,
    pub(super) ports: Ports,
}

impl PortForward {
    /// Forwards until the client leaves or misbehaves, nothing moves, or the daemon stops.
    pub(super) async fn run<T>(self, io: T)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut connection = Connection::start(io, 2 * CONNECTIONS_MAX);
        let activity = Arc::new(Activity::new());
        let mut pairs = Pairs::default();
        let mut forwards = JoinSet::new();
        let mut check = interval(PAIR_CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut accepting = true;
        loop {
            tokio::select! {
                event = next(&mut connection, accepting) => match event {
                    Event::Stream(incoming) => {
                        if let Some(pair) = pairs.add(incoming) {
                            let forward = pair.forward(self.ports.clone(), Arc::clone(&activity));
                            forwards.spawn(forward.in_current_span());
                        }
                        activity.mark();
                    }
                    // What is there may go on.
                    Event::NoMore => accepting = false,
                    Event::Gone(reason) => return debug!(?reason, "the client is gone"),
                },
                Some(_ended) = forwards.join_next() => {}
                _ = check.tick() => pairs.give_up(),
                () = activity.idle_for(self.session.idle) => break,
                () = self.session.stop.cancelled() => break,
            }
        }
        forwards.shutdown().await;
        drop(pairs);
        let goodbye = async {
            connection.finish().await;
            connection.gone().await
        };
        if timeout(CLOSE_TIMEOUT, goodbye).await.is_err() {
            debug!("the client did not hang up");
        }
    }
}

/// What a client does.
enum Event {
    /// It opens a stream.
    Stream(Incoming),
    /// It opens no more.
    NoMore,
    /// It has left; why, if it did not want to.
    Gone(Option<ReadError>),
}

async fn next(connection: &mut Connection, accepting: bool) -> Event {
    if !accepting {
        return Event::Gone(connection.gone().await.err());
    }
    let incoming = connection.accept().await;
    incoming.map_or(Event::NoMore, Event::Stream)
}

/// A stream's part in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Data,
    Error,
}

/// What a stream's headers say.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    request: String,
    part: Part,
    port: u16,
}

impl Asked {
    /// None when something is missing or wrong.
    fn read(headers: &Headers, stream: u32) -> Option<Self> {
        let part = match headers.get("streamtype")? {
            "data" => Part::Data,
            "error" => Part::Error,
            _ => return None,
        };
        let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
        let request = match (headers.get("requestid"), part) {
            (Some(id), _) if id.len() > REQUEST_ID_MAX => return None,
            (Some(id), _) if !id.is_empty() => id.to_owned(),
            // Old clients open the two one after the other and do not name them.
            (_, Part::Error) => stream.to_string(),
            (_, Part::Data) => stream.checked_sub(2)?.to_string(),
        };
        Some(Self {
            request,
            part,
            port,
        })
    }
}

/// Streams whose other half has not come.
#[derive(Debug, Default)]
struct Pairs(HashMap<String, Half>);

#[derive(Debug)]
struct Half {
    part: Part,
    stream: Stream,
    since: Instant,
}

/// A connection that a client wants.
#[derive(Debug)]
struct Pair {
    port: u16,
    data: Stream,
    error: Stream,
}

impl Pairs {
    /// Takes up a stream; the connection when it has both. Refuses what makes no sense.
    fn add(&mut self, incoming: Incoming) -> Option<Pair> {
        let Some(asked) = Asked::read(incoming.headers(), incoming.id()) else {
            debug!("a client's stream is refused");
            return None;
        };
        let waiting = self.0.get(&asked.request);
        if waiting.is_some_and(|half| half.part == asked.part) {
            debug!("a client's second stream is refused");
            return None;
        }
        let (_headers, stream) = incoming.accept();
        let Some(half) = self.0.remove(&asked.request) else {
            let (part, since) = (asked.part, Instant::now());
            let half = Half {
                part,
                stream,
                since,
            };
            self.0.insert(asked.request, half);
            return None;
        };
        let (data, error) = match asked.part {
            Part::Data => (stream, half.stream),
            Part::Error => (half.stream, stream),
        };
        let port = asked.port;
        Some(Pair { port, data, error })
    }

    /// Resets those that have waited too long.
    fn give_up(&mut self) {
        self.0.retain(|_, half| half.since.elapsed() < PAIR_TIMEOUT);
    }
}

/// Why a connection ended before both its directions did.
enum Broken {
    /// The client reset it, or is gone.
    Client,
    /// The sandbox's end broke.
    Sandbox(StreamError),
}

impl Pair {
    /// Connects, moves bytes until both directions have ended, and tells what went wrong.
    async fn forward(self, ports: Ports, activity: Arc<Activity>) {
        let (from_client, mut to_client) = self.data.split();
        let (_nothing, mut error) = self.error.split();
        let failure = match (ports.0)(self.port).await {
            Ok(stream) => match relay(from_client, &mut to_client, stream, &activity).await {
                Ok(()) | Err(Broken::Client) => None,
                Err(Broken::Sandbox(error)) => Some(chain(&error)),
            },
            Err(error) => Some(chain(&*error)),
        };
        // A client that has left needs neither the reason nor the end.
        if let Some(failure) = failure {
            let text = format!("error forwarding port {}: {failure}", self.port);
            debug!(text, "a connection failed");
            let _left = error.write(Bytes::from(text)).await;
            let _left = to_client.reset().await;
        }
        let _left = error.finish().await;
    }
}

async fn relay(
    from_client: StreamReader,
    to_client: &mut StreamWriter,
    stream: ProcessStream,
    activity: &Activity,
) -> Result<(), Broken> {
    let (output, input) = stream.split();
    let up = give_input(from_client, input, activity);
    let down = take_output(output, to_client, activity);
    // The input's end is kept: dropped, it would end the connection.
    tokio::try_join!(up, down).map(drop)
}

async fn give_input(
    mut from_client: StreamReader,
    mut input: ProcessInput,
    activity: &Activity,
) -> Result<ProcessInput, Broken> {
    loop {
        let given = match from_client.next().await {
            Ok(Some(bytes)) => input.write(&bytes).await,
            Ok(None) => {
                // An error is the output's to tell.
                let _broken = input.close().await;
                return Ok(input);
            }
            Err(_) => return Err(Broken::Client),
        };
        activity.mark();
        if given.is_err() {
            return Ok(input);
        }
    }
}

async fn take_output(
    mut output: ProcessOutput,
    to_client: &mut StreamWriter,
    activity: &Activity,
) -> Result<(), Broken> {
    loop {
        let sent = match output.next().await.map_err(Broken::Sandbox)? {
            Some(Output::Stdout(bytes)) => to_client.write(bytes).await,
            // A port has none.
            Some(Output::Stderr(_)) => Ok(()),
            None => return to_client.finish().await.map_err(|_left| Broken::Client),
        };
        activity.mark();
        sent.map_err(|_left| Broken::Client)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Option<Asked> {
        Asked::read(&Headers::new(pairs), 7)
    }

    #[test]
    fn stream_is_named_by_its_request_or_else_by_its_number() {
        let asked = |request: &str, part| {
            let (request, port) = (request.to_owned(), 80);
            Some(Asked {
                request,
                part,
                port,
            })
        };
        let named = [("streamtype", "data"), ("port", "80"), ("requestid", "a")];
        assert_eq!(read(&named), asked("a", Part::Data));
        assert_eq!(read(&named[..2]), asked("5", Part::Data));
        let error = [("streamtype", "error"), ("port", "80")];
        assert_eq!(read(&error), asked("7", Part::Error));
        assert_eq!(Asked::read(&Headers::new(&named[..2]), 1), None);
    }

    #[test]
    fn headers_that_make_no_sense_are_refused() {
        for port in ["0", "65536", "-1", "", "http"] {
            assert_eq!(read(&[("streamtype", "data"), ("port", port)]), None);
        }
        assert_eq!(read(&[("streamtype", "stdin"), ("port", "80")]), None);
        assert_eq!(read(&[("streamtype", "data")]), None);
        assert_eq!(read(&[("port", "80")]), None);
        let long = "x".repeat(REQUEST_ID_MAX + 1);
        let named = [("streamtype", "data"), ("port", "80"), ("requestid", &long)];
        assert_eq!(read(&named), None);
    }
}
