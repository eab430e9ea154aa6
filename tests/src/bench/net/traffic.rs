//! The host's side of what is measured: connections to the guest's three ports.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{BYTES, ECHO, GUEST, SINK, SOURCE};

/// How long the guest may take to boot and serve.
const LIMIT: Duration = Duration::from_secs(10);

/// How long one attempt to connect may take, and the pause after one that failed.
const ATTEMPT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(100);

/// How long the guest may be silent: a guest that spins takes minutes for a second of the
/// instruction clock.
const SILENCE: Duration = Duration::from_secs(3);

/// Bytes of one read or write.
const BLOCK: usize = 64 << 10;

/// Round trips whose median counts, and those before that do not count.
const ROUND_TRIPS: usize = 500;
const WARM_UP: usize = 20;

/// What one guest's interface did.
#[derive(Debug)]
pub(super) struct Figures {
    /// How long [`BYTES`] took from the guest.
    pub(super) from_guest: Duration,
    /// How long they took to the guest.
    pub(super) to_guest: Duration,
    /// The median of one byte's way to the guest and back.
    pub(super) round_trip: Duration,
}

/// Waits until the guest serves, and measures.
pub(super) fn measure() -> Result<Figures> {
    // The first connection waits for the guest to boot.
    let round_trip = round_trip(connect(ECHO)?).context("round trips")?;
    let from_guest = from_guest(connect(SOURCE)?).context("from the guest")?;
    let to_guest = to_guest(connect(SINK)?).context("to the guest")?;
    Ok(Figures {
        from_guest,
        to_guest,
        round_trip,
    })
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((GUEST, port));
    let deadline = Instant::now() + LIMIT;
    let stream = loop {
        match TcpStream::connect_timeout(&address, ATTEMPT) {
            Ok(stream) => break stream,
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("connecting to {address}"));
            }
            Err(_) => sleep(PAUSE),
        }
    };
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn round_trip(mut stream: TcpStream) -> Result<Duration> {
    let mut byte = [0];
    let mut once = || -> Result<Duration> {
        let begin = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        Ok(begin.elapsed())
    };
    for _ in 0..WARM_UP {
        once()?;
    }
    let mut times = (0..ROUND_TRIPS)
        .map(|_| once())
        .collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times[ROUND_TRIPS / 2])
}

fn from_guest(mut stream: TcpStream) -> Result<Duration> {
    let mut buffer = vec![0; BLOCK];
    let begin = Instant::now();
    let mut heard = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            count => heard += u64::try_from(count)?,
        }
    }
    let took = begin.elapsed();
    ensure!(heard == BYTES, "{heard} bytes came");
    Ok(took)
}

fn to_guest(mut stream: TcpStream) -> Result<Duration> {
    let buffer = vec![0; BLOCK];
    let begin = Instant::now();
    for _ in 0..BYTES / u64::try_from(BLOCK)? {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    // The guest ends its side when it has read everything.
    let rest = stream.read(&mut [0; 1])?;
    let took = begin.elapsed();
    ensure!(rest == 0, "the guest's sink said something");
    Ok(took)
}
