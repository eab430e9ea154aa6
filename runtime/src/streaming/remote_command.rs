//! A process's streams as streams of a SPDY connection: `channel.k8s.io` up to version 4
//! (k8s.io/apimachinery, pkg/util/remotecommand).
//!
//! The client opens a stream for each of the process's that it wants, named in the header
//! `streamtype`, and one more for how it ended:
//!
//! ```text
//!            ┌── stdin, resize ──<── SPDY streams from the client
//! process <──┤                                                         client
//!            └── stdout, stderr, error ──> SPDY streams to the client
//! ```
//!
//! Versions 1 to 3 get a sentence on `error` when something went wrong, version 4 a Status in any
//! case. Versions 3 and 4 have `resize`.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use isopod_spdy::{Connection, Stream, StreamError as SpdyError, StreamReader, StreamWriter};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tracing::debug;

use super::activity::Activity;
use super::channel::TerminalSize;
use super::session::{CLOSE_TIMEOUT, IDLE, STOPPED, Session, pieces};
use super::status::End;
use super::{OpenError, Process, Streams, Takes};
use crate::vm::{Output, ProcessInput, ProcessOutput, StreamError};

/// How long a client may take to open its streams (as long as kubelets wait).
const CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// Most streams of a client: one of each kind, and some that are refused.
const STREAMS_MAX: usize = 8;

/// Longest JSON text of a terminal's size, in bytes.
const SIZE_MAX: usize = 256;

/// The sub-protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V1,
    V2,
    V3,
    V4,
}

impl Version {
    /// The names in `X-Stream-Protocol-Version`, newest first.
    pub(super) const NAMES: [&str; 4] = [
        "v4.channel.k8s.io",
        "v3.channel.k8s.io",
        "v2.channel.k8s.io",
        "channel.k8s.io",
    ];

    /// The version with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let versions = [Self::V4, Self::V3, Self::V2, Self::V1];
        let at = Self::NAMES.iter().position(|known| *known == name)?;
        Some(versions[at])
    }
}

/// One client's SPDY connection.
#[derive(Debug)]
pub(super) struct RemoteCommand {
    pub(super) session: Session,
    pub(super) version: Version,
    /// What the client asked for.
    pub(super) streams: Streams,
}

/// The client's streams.
#[derive(Debug, Default)]
struct Opened {
    error: Option<Stream>,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// What the client is sent.
struct Sinks {
    error: StreamWriter,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
}

/// What the client sends.
#[derive(Default)]
struct Sources {
    stdin: Option<StreamReader>,
    resize: Option<StreamReader>,
}

impl RemoteCommand {
    /// Moves bytes until the session is over, and closes the connection.
    pub(super) async fn run<T>(self, io: T, opened: Result<Process, OpenError>)
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let mut connection = Connection::start(io, STREAMS_MAX);
        let Some((mut sinks, sources, keep)) = self.take_streams(&mut connection).await else {
            debug!("the client opened no streams");
            return;
        };
        let end = match opened {
            Ok(process) => {
                let moved = self.relay(&mut connection, &mut sinks, sources, process);
                match moved.await {
                    Some(end) => end,
                    // There is nobody to tell.
                    None => return,
                }
            }
            Err(error) => End::failure(&*error),
        };
        let last_words = async {
            sinks.end(self.version, &end).await?;
            drop((sinks, keep));
            connection.finish().await;
            Ok::<_, SpdyError>(())
        };
        match timeout(self.session.idle, last_words).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return debug!(%error, "the client left before the end"),
            Err(_late) => return debug!("the client did not take the end of its stream"),
        }
        if timeout(CLOSE_TIMEOUT, connection.gone()).await.is_err() {
            debug!("the client did not hang up");
        }
    }

    /// Waits for the streams that the client asked for. What must not be reset before the end comes
    /// with them.
    async fn take_streams(
        &self,
        connection: &mut Connection,
    ) -> Option<(Sinks, Sources, [Option<StreamWriter>; 2])> {
        let mut opened = Opened::default();
        let wait = async {
            while !opened.complete(self.streams, self.version) {
                let incoming = connection.accept().await?;
                let kind = incoming.headers().get("streamtype");
                let Some(place) = kind.and_then(|kind| opened.place(kind)) else {
                    debug!(kind, "a client's stream is refused");
                    continue;
                };
                *place = Some(incoming.accept().1);
            }
            Some(())
        };
        timeout(CREATION_TIMEOUT, wait).await.ok().flatten()?;
        let to_client = |stream: Option<Stream>| stream.map(|stream| stream.split().1);
        let (stdin, keep_stdin) = opened.stdin.map(Stream::split).unzip();
        let (resize, keep_resize) = opened.resize.map(Stream::split).unzip();
        let sinks = Sinks {
            error: opened.error?.split().1,
            stdout: to_client(opened.stdout),
            stderr: to_client(opened.stderr),
        };
        Some((sinks, Sources { stdin, resize }, [keep_stdin, keep_resize]))
    }

    /// How it ended; none when the client is gone.
    async fn relay(
        &self,
        connection: &mut Connection,
        sinks: &mut Sinks,
        sources: Sources,
        process: Process,
    ) -> Option<End> {
        let Process {
            stream,
            takes,
            exit,
        } = process;
        let (output, input) = stream.split();
        let activity = Activity::new();
        let ended = async {
            if let Err(error) = sinks.take_output(output, &activity).await {
                return Some(End::failure(&error));
            }
            let Some(exit) = exit else {
                return Some(End::Success);
            };
            Some(match exit.await {
                Ok(code) => End::Exit(code),
                Err(error) => End::failure(&*error),
            })
        };
        tokio::select! {
            end = ended => end,
            () = sources.give_input((input, takes), &activity) => unreachable!("it waits for ever"),
            gone = connection.gone() => {
                debug!(reason = ?gone.err(), "the client is gone");
                None
            }
            () = activity.idle_for(self.session.idle) => Some(End::Failure(IDLE.into())),
            () = self.session.stop.cancelled() => Some(End::Failure(STOPPED.into())),
        }
    }
}

impl Opened {
    /// Where a stream of this kind goes, if there is none yet.
    fn place(&mut self, kind: &str) -> Option<&mut Option<Stream>> {
        let place = match kind {
            "error" => &mut self.error,
            "stdin" => &mut self.stdin,
            "stdout" => &mut self.stdout,
            "stderr" => &mut self.stderr,
            "resize" => &mut self.resize,
            _ => return None,
        };
        place.is_none().then_some(place)
    }

    /// Whether everything is there that was asked for. Nothing can come later: a client that opens
    /// a stream of a process that has ended takes it for a failure.
    fn complete(&self, asked: Streams, version: Version) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !asked.stdin)
            && (self.stdout.is_some() || !asked.stdout)
            && (self.stderr.is_some() || !asked.stderr)
            && (self.resize.is_some() || !asked.tty || version < Version::V3)
    }
}

impl Sinks {
    /// Sends the process's output until it ends.
    async fn take_output(
        &mut self,
        output: ProcessOutput,
        activity: &Activity,
    ) -> Result<(), StreamError> {
        let mut output = std::pin::pin!(pieces(output));
        while let Some(piece) = output.next().await.transpose()? {
            let (sink, bytes) = match piece {
                Output::Stdout(bytes) => (&mut self.stdout, bytes),
                Output::Stderr(bytes) => (&mut self.stderr, bytes),
            };
            // One that the client wants no more of, or none of, does not stop the other.
            if let Some(open) = sink
                && open.write(bytes).await.is_err()
            {
                *sink = None;
            }
            activity.mark();
        }
        Ok(())
    }

    /// Tells how it ended: first, because clients of version 1 leave when the output ends.
    async fn end(&mut self, version: Version, end: &End) -> Result<(), SpdyError> {
        let text = match version {
            Version::V4 => Some(end.status().to_string()),
            Version::V1 | Version::V2 | Version::V3 => end.text(),
        };
        if let Some(text) = text {
            self.error.write(Bytes::from(text)).await?;
        }
        self.error.finish().await?;
        for sink in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            // One that the client has closed itself needs no end.
            let _closed = sink.finish().await;
        }
        Ok(())
    }
}

impl Sources {
    /// Gives what the client sends to the process; does not end.
    async fn give_input(mut self, (mut input, takes): (ProcessInput, Takes), activity: &Activity) {
        // Dropped, what comes is thrown away.
        self.stdin = self.stdin.filter(|_| takes.stdin);
        self.resize = self.resize.filter(|_| takes.resize);
        let mut sizes = BytesMut::new();
        loop {
            tokio::select! {
                piece = next(&mut self.stdin) => {
                    let ended = !matches!(piece, Ok(Some(_)));
                    let given = match piece {
                        Ok(Some(bytes)) => input.write(&bytes).await,
                        Ok(None) => input.close().await,
                        // Broken off: not what the process should take for the end.
                        Err(_) => Ok(()),
                    };
                    // A process that takes its input no more is no reason to lose its output.
                    if ended || given.is_err() {
                        self.stdin = None;
                    }
                }
                piece = next(&mut self.resize) => {
                    let Ok(Some(bytes)) = piece else {
                        self.resize = None;
                        continue;
                    };
                    sizes.extend_from_slice(&bytes);
                    match take_size(&mut sizes) {
                        Ok(Some(size)) => {
                            let _process_ended = input.resize(size.columns, size.rows).await;
                        }
                        Ok(None) => {}
                        Err(NoSize) => self.resize = None,
                    }
                }
            }
            activity.mark();
        }
    }
}

async fn next(source: &mut Option<StreamReader>) -> Result<Option<Bytes>, SpdyError> {
    match source {
        Some(source) => source.next().await,
        None => std::future::pending().await,
    }
}

/// What came is no terminal's size.
#[derive(Debug, PartialEq, Eq)]
struct NoSize;

/// Takes the sizes off the beginning of what came, one JSON object behind the other, and returns the
/// last: those before it are history.
fn take_size(came: &mut BytesMut) -> Result<Option<TerminalSize>, NoSize> {
    let mut sizes = serde_json::Deserializer::from_slice(came).into_iter::<TerminalSize>();
    let (mut last, mut taken) = (None, 0);
    loop {
        match sizes.next() {
            Some(Ok(size)) => {
                last = Some(size);
                taken = sizes.byte_offset();
            }
            Some(Err(error)) if error.is_eof() => break,
            Some(Err(_)) => return Err(NoSize),
            None => break,
        }
    }
    drop(came.split_to(taken));
    if came.len() > SIZE_MAX {
        return Err(NoSize);
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(columns: u16, rows: u16) -> TerminalSize {
        TerminalSize { columns, rows }
    }

    #[test]
    fn sizes_are_read_however_they_are_cut() {
        let mut came = BytesMut::from(&b"{\"Width\":80,\"Height\":24}\n{\"Wid"[..]);
        assert_eq!(take_size(&mut came), Ok(Some(size(80, 24))));
        assert_eq!(take_size(&mut came), Ok(None));
        came.extend_from_slice(b"th\":81,\"Height\":25}\n{\"Width\":82,\"Height\":26}\n");
        assert_eq!(take_size(&mut came), Ok(Some(size(82, 26))));
        assert_eq!(take_size(&mut came), Ok(None));
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for bytes in [
            &b"x"[..],
            b"{}",
            b"{\"Width\":-1,\"Height\":2}",
            b"\xff",
            &[b' '; SIZE_MAX + 1],
        ] {
            assert_eq!(take_size(&mut bytes.into()), Err(NoSize), "{bytes:?}");
        }
    }

    #[test]
    fn client_must_open_what_it_asked_for() {
        let asked = Streams {
            stdin: false,
            stdout: false,
            stderr: false,
            tty: true,
        };
        let opened = Opened::default();
        assert!(!opened.complete(asked, Version::V1), "there is no error");
        assert!(!opened.complete(asked, Version::V4));
    }

    proptest::proptest! {
        #[test]
        fn any_size_is_read_or_refused(bytes in proptest::collection::vec(0_u8.., 0..300)) {
            let _ = take_size(&mut bytes.as_slice().into());
        }
    }
}
