//! `cargo xtask lab -- COMMAND`: a host with a real KVM, anywhere.
//!
//! Where KVM is not usable, QEMU emulates a machine with AMD SVM and nested paging, and Debian's own
//! kernel with `kvm_amd` offers a genuine `/dev/kvm` in it. The lab sees this machine's root file
//! system, read-only, under a writable layer in memory; `/var/lib/isopod` is a disk of its own.
//!
//! ```text
//! Lab::run ──> qemu ──> first.sh ──> second.sh ──> the command
//!    ^                                  │ ports: out, err (Relay), status
//!    └──────────────────────────────────┘
//! ```
//!
//! - [`kernel`]: Debian's kernel and its modules, fetched once.
//! - [`initramfs`]: the first steps inside, as an initramfs per run.
//! - [`machine`]: QEMU's command line.
//! - [`monitor`]: where a machine stands that does not go on.
//! - [`relay`]: the command's output, as it comes, signs of life, and its exit status.
//! - [`session`]: one run from start to clean-up.
//! - [`shell`]: quoting for the shells inside.
//!
//! Everything of a run lies in a folder of its own, so labs do not disturb each other. The relays
//! run on threads; the rest on the caller's.

mod initramfs;
mod kernel;
mod machine;
mod monitor;
mod relay;
mod session;
mod shell;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

pub(crate) use self::session::Frozen;
use crate::kvm;

/// vCPUs of the emulated host, unless it is told otherwise. KVM patches its host's kernel as guests come
/// and go (static keys), and QEMU's multi-threaded TCG does not keep other vCPUs from running an
/// instruction that is half patched: with two, one run in a few ends in an oops.
const CPUS: u32 = 1;

/// Options of `cargo xtask lab`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// A prompt instead of a command
    #[arg(long)]
    shell: bool,
    /// The emulated host even where KVM is usable
    #[arg(long)]
    emulate: bool,
    /// One vCPU and a clock that counts instructions, so that timings repeat
    #[arg(long)]
    icount: bool,
    /// Memory of the emulated host, in MiB
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(512..))]
    memory_mib: u32,
    /// vCPUs of the emulated host; more than one is quicker, and now and then crashes it
    #[arg(long, default_value_t = CPUS, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Give up after so many seconds (exit status 124)
    #[arg(long)]
    timeout_s: Option<u64>,
    /// Set an environment variable, or pass on one of this process (repeatable)
    #[arg(long, value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// A folder that the command can write to, as /run/lab/exchange; the rest of what it writes is lost
    #[arg(long, value_name = "FOLDER")]
    exchange: Option<PathBuf>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What to run in a lab, and how.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The command and its arguments; empty for a prompt.
    pub(crate) command: Vec<String>,
    /// Variables on top of `PATH` and `HOME`.
    pub(crate) env: Vec<(String, String)>,
    /// Its working folder.
    pub(crate) folder: PathBuf,
    /// A clock that counts instructions.
    pub(crate) icount: bool,
    /// Memory of the emulated host, MiB.
    pub(crate) memory_mib: u32,
    /// vCPUs of the emulated host.
    pub(crate) cpus: u32,
    /// How long the whole run may take.
    pub(crate) timeout: Option<Duration>,
    /// A folder that the command can write to, as `/run/lab/exchange`.
    pub(crate) exchange: Option<PathBuf>,
}

impl Job {
    /// A command with default settings, in the current folder.
    pub(crate) fn new(command: Vec<String>) -> Result<Self> {
        Ok(Self {
            command,
            env: Vec::new(),
            folder: std::env::current_dir().context("reading the current folder")?,
            icount: false,
            memory_mib: 4096,
            cpus: CPUS,
            timeout: None,
            exchange: None,
        })
    }
}

/// Runs `cargo xtask lab`; the command's exit status is the result.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.shell == arguments.command.is_empty(),
        "say either --shell or what to run: cargo xtask lab -- COMMAND"
    );
    let mut job = Job::new(arguments.command.clone())?;
    for variable in &arguments.env {
        job.env.push(variable_of(variable)?);
    }
    job.icount = arguments.icount;
    job.memory_mib = arguments.memory_mib;
    job.cpus = arguments.cpus;
    job.timeout = arguments.timeout_s.map(Duration::from_secs);
    if let Some(folder) = &arguments.exchange {
        job.exchange = Some(
            folder
                .canonicalize()
                .with_context(|| format!("{}", folder.display()))?,
        );
    }
    let status = if arguments.emulate || arguments.shell {
        session::run(&job)?
    } else {
        where_kvm_is(&job)?
    };
    Ok(ExitCode::from(status))
}

/// Runs the job where KVM is: on this machine if it can, otherwise in the emulated host.
pub(crate) fn where_kvm_is(job: &Job) -> Result<u8> {
    if !job.icount && kvm::unusable().is_none() {
        natively(job)
    } else {
        session::run(job)
    }
}

/// Runs the job as a child of this process.
fn natively(job: &Job) -> Result<u8> {
    let [program, arguments @ ..] = job.command.as_slice() else {
        bail!("nothing to run");
    };
    let status = Command::new(program)
        .args(arguments)
        .envs(job.env.iter().map(|(name, value)| (name, value)))
        .current_dir(&job.folder)
        .status()
        .with_context(|| format!("running {program}"))?;
    Ok(exit_status(status))
}

/// An exit status as a shell reports it: 128 plus the number for a signal.
fn exit_status(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt as _;
    let number = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    number
        .and_then(|number| u8::try_from(number).ok())
        .unwrap_or(1)
}

/// `NAME=VALUE`, or `NAME` with the value it has here.
fn variable_of(text: &str) -> Result<(String, String)> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (
            text,
            std::env::var(text).with_context(|| format!("--env {text}"))?,
        ),
    };
    let is_name = !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    ensure!(is_name, "--env {text}: not a variable's name");
    Ok((name.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::ExitStatus;

    #[test]
    fn exit_status_is_the_commands_own_or_128_plus_its_signal() {
        assert_eq!(exit_status(ExitStatus::from_raw(0)), 0);
        assert_eq!(exit_status(ExitStatus::from_raw(7 << 8)), 7);
        assert_eq!(exit_status(ExitStatus::from_raw(9)), 137);
    }

    #[test]
    fn a_variable_is_given_or_passed_on() {
        assert_eq!(variable_of("A=b=c").unwrap(), ("A".into(), "b=c".into()));
        let here = std::env::var("CARGO_MANIFEST_DIR").unwrap();
        assert_eq!(variable_of("CARGO_MANIFEST_DIR").unwrap().1, here);
        for bad in ["=x", "1A=x", "A B=x", "NOT_SET_ANYWHERE", "A;b=x"] {
            assert!(variable_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_native_run_passes_folder_variables_and_exit_status_on() {
        let script = r#"[ "$PWD" = / ] && [ "$WORD" = "two words" ] && exit 42"#;
        let mut job = Job::new(vec!["sh".into(), "-c".into(), script.into()]).unwrap();
        job.folder = "/".into();
        job.env = vec![("WORD".into(), "two words".into())];
        assert_eq!(natively(&job).unwrap(), 42);
    }
}
