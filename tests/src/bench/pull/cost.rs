//! What work costs a daemon and its client, as `/proc` counts it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// What one pull cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    /// From the client's start to its end.
    pub(super) time: Duration,
    /// Of the daemon, of programs that it ran, and of the client.
    pub(super) cpu: Duration,
    /// Bytes that the daemon, and programs that it ran, made dirty in the page cache or wrote past it.
    pub(super) written: u64,
    /// The most that was resident of the daemon, in bytes.
    pub(super) memory: u64,
}

/// Counters of a daemon at one moment.
struct Counters {
    cpu: Duration,
    written: u64,
    memory: u64,
}

/// Runs `work`, which starts clients and waits for them, and says what it cost.
pub(super) fn of(daemon: i32, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (before, clients) = (Counters::read(daemon)?, clients()?);
    let begin = Instant::now();
    work()?;
    let time = begin.elapsed();
    let after = Counters::read(daemon)?;
    Ok(Cost {
        time,
        cpu: after.cpu - before.cpu + (self::clients()? - clients),
        written: after.written - before.written,
        memory: after.memory,
    })
}

impl Counters {
    fn read(pid: i32) -> Result<Self> {
        let (own, children) = cpu(pid)?;
        let number = |file: &str, key: &str| -> Result<u64> {
            let path = format!("/proc/{pid}/{file}");
            let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
            number.with_context(|| format!("{path} has no {key}"))
        };
        Ok(Self {
            cpu: own + children,
            written: number("io", "write_bytes:")?,
            memory: number("status", "VmHWM:")? << 10,
        })
    }
}

/// What the clients have used that were waited for.
fn clients() -> Result<Duration> {
    let own = i32::try_from(std::process::id()).context("a process id")?;
    Ok(cpu(own)?.1)
}

/// User and system time of a process, and of its children that were waited for (proc(5), `stat`).
fn cpu(pid: i32) -> Result<(Duration, Duration)> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let (_, after) = text.rsplit_once(')').context("a name in parentheses")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    // utime is the 14th field of all, the state after the name is the 3rd.
    let ticks = |field: usize| -> Result<u64> {
        let text = fields.get(field - 3).context("too few fields")?;
        text.parse().context("no number")
    };
    // Linux shows hundredths of a second, whatever its own clock (USER_HZ).
    let time = |ticks: u64| Duration::from_millis(ticks * 10);
    Ok((time(ticks(14)? + ticks(15)?), time(ticks(16)? + ticks(17)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_a_client_and_bytes_of_the_daemon_are_counted() {
        let daemon = i32::try_from(std::process::id()).unwrap();
        let folder = tempfile::tempdir_in(".").unwrap();
        let cost = of(daemon, || {
            std::fs::write(folder.path().join("file"), vec![1; 1 << 20])?;
            let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
            std::process::Command::new("sh")
                .args(["-c", spin])
                .status()?;
            Ok(())
        })
        .unwrap();
        assert!(cost.cpu >= Duration::from_millis(20), "{cost:?}");
        assert!(cost.written >= 1 << 20, "{cost:?}");
        assert!(cost.memory > 1 << 20, "{cost:?}");
    }
}
