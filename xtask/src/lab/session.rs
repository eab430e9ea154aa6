//! One run of the lab, from set-up to clean-up.

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::machine::{self, Files};
use super::monitor;
use super::relay::{self, Event};
use super::{Job, initramfs, kernel};
use crate::progress::say;
use crate::{project, setup};

/// Size of the disk for `/var/lib/isopod`; sparse, so it takes what is written.
const DISK: &str = "20G";

/// How often the machine and the interrupt flag are looked at.
const POLL: Duration = Duration::from_millis(50);

/// How long a host that is alive may be silent: it is heard every five seconds of its own clock, which
/// may be far slower than ours when it counts instructions.
const SILENCE: Duration = Duration::from_secs(180);
const SILENCE_ICOUNT: Duration = Duration::from_secs(1800);

/// Exit status after a time-out, as timeout(1) has it.
const TIMED_OUT: u8 = 124;

/// Exit status after an interrupt, as a shell has it.
const INTERRUPTED: u8 = 130;

/// How many lines of the console an error shows.
const ERROR_LINES: usize = 30;

/// The emulated host no longer runs anything: a fault of the emulation, not of the job.
#[derive(Debug, thiserror::Error)]
#[error("the emulated host froze")]
pub(crate) struct Frozen;

/// Runs the job in the emulated host and returns the command's exit status.
pub(super) fn run(job: &Job) -> Result<u8> {
    setup::packages(&[setup::Need::Lab])?;
    let kernel = kernel::get()?;
    let folder = tempfile::Builder::new().prefix("isopod-lab.").tempdir()?;
    let end = format!("#lab-end-{}#", nonce()?);
    let in_folder = |name: &str| folder.path().join(name);
    let initramfs = in_folder("initramfs");
    std::fs::write(&initramfs, initramfs::build(&kernel, job, &end)?)?;
    let disk = disk(&project::cache().root().join("lab-disks"))?;
    let (console, errors) = (in_folder("console.log"), in_folder("qemu.log"));
    let monitor = in_folder("monitor");

    let (events, received) = channel();
    let ports: Vec<(&'static str, PathBuf)> = ["out", "err", "status"]
        .into_iter()
        .map(|name| (name, in_folder(name)))
        .collect();
    relay::output(
        listen(&ports[0].1)?,
        io::stdout(),
        end.clone(),
        events.clone(),
    )?;
    relay::output(listen(&ports[1].1)?, io::stderr(), end, events.clone())?;
    relay::status(listen(&ports[2].1)?, events)?;

    let port_paths: Vec<(&'static str, &Path)> = ports
        .iter()
        .map(|(name, path)| (*name, path.as_path()))
        .collect();
    let files = Files {
        initramfs: &initramfs,
        console: &console,
        disk: disk.path(),
        monitor: &monitor,
        ports: &port_paths,
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut qemu = machine::command(&kernel, job, &files);
    if !job.command.is_empty() {
        qemu.stdin(Stdio::null()).stdout(Stdio::null());
    }
    let mut machine = Machine(
        qemu.stderr(File::create(&errors)?)
            .spawn()
            .context("starting QEMU")?,
    );

    watch(job, &received, &mut machine, &files, &errors, &interrupted)
}

/// Waits for the end of the command, or of the machine.
fn watch(
    job: &Job,
    received: &Receiver<Event>,
    machine: &mut Machine,
    files: &Files<'_>,
    errors: &Path,
    interrupted: &AtomicBool,
) -> Result<u8> {
    let silence = if job.icount { SILENCE_ICOUNT } else { SILENCE };
    let begin = Instant::now();
    let mut heard = begin;
    // A prompt's output goes to the terminal, not through the output ports.
    let mut open_outputs = if job.command.is_empty() { 0 } else { 2 };
    let mut status = None;
    loop {
        match received.recv_timeout(POLL) {
            Ok(Event::Ended) => open_outputs -= 1,
            Ok(Event::Alive) => heard = Instant::now(),
            Ok(Event::Status(number)) => status = Some(number),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                if machine.0.try_wait()?.is_some() {
                    break;
                }
            }
        }
        if open_outputs <= 0 && status.is_some() {
            break;
        }
        if interrupted.load(Ordering::Relaxed) {
            return Ok(INTERRUPTED);
        }
        if heard.elapsed() > silence {
            let seconds = heard.elapsed().as_secs();
            say(&format!(
                "Lab: the emulated host has stood still for {seconds} s"
            ));
            for line in monitor::state(files.monitor).lines() {
                say(&format!("  {line}"));
            }
            show(files.console)?;
            return Err(Frozen.into());
        }
        if job.timeout.is_some_and(|timeout| begin.elapsed() > timeout) {
            let seconds = begin.elapsed().as_secs();
            say(&format!("Lab: no end after {seconds} s"));
            show(files.console)?;
            return Ok(TIMED_OUT);
        }
    }
    let Some(status) = status else {
        show(errors)?;
        show(files.console)?;
        bail!("the lab ended before the command did");
    };
    Ok(status)
}

/// QEMU's process; ended and reaped when dropped.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listen(path: &Path) -> Result<UnixListener> {
    UnixListener::bind(path).with_context(|| format!("listening on {}", path.display()))
}

/// A fresh ext4 in a sparse file, gone when dropped.
fn disk(folder: &Path) -> Result<tempfile::NamedTempFile> {
    std::fs::create_dir_all(folder)?;
    let file = tempfile::Builder::new()
        .prefix("disk.")
        .tempfile_in(folder)?;
    let output = Command::new("mke2fs")
        .args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=1,lazy_journal_init=1",
        ])
        .arg(file.path())
        .arg(DISK)
        .output()
        .context("running mke2fs")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "mke2fs failed: {complaint}");
    Ok(file)
}

/// 128 random bits.
fn nonce() -> Result<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/uuid").context("reading a uuid")?;
    Ok(text.trim_end().to_owned())
}

/// The last lines of a log.
fn show(log: &Path) -> Result<()> {
    let bytes = std::fs::read(log).with_context(|| format!("reading {}", log.display()))?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(ERROR_LINES)..] {
        say(&format!("  {line}"));
    }
    Ok(())
}
