//! The lab: a host with a working `/dev/kvm` on machines that have none.
//!
//! QEMU emulates an AMD processor with SVM and nested paging; a Debian kernel with `kvm_amd` runs on
//! it and offers a real KVM, about ten times slower than hardware. The machine's own root file
//! system is the lab's, read-only under a `tmpfs`, so whatever is installed or built here is there
//! too, and nothing that happens in the lab is kept, except what is written to `/run/lab/exchange`.
//!
//! ```text
//!   cargo xtask lab ── qemu-system-x86_64 (TCG) ── Debian kernel, kvm_amd
//!     command, environment  ──>  /run/lab (9p)  ──>  second-stage.sh runs the command
//!     stdout, stderr, status <── virtio-serial ports, one each
//! ```
//!
//! - [`host`]: the emulated host's kernel and modules, from Debian's package.
//! - [`initramfs`]: what the kernel starts with, and the scripts of both stages.
//! - [`machine`]: QEMU's command line, and the run itself.

mod host;
mod initramfs;
mod machine;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

pub(crate) use machine::Outcome;

/// `cargo xtask lab`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One vCPU and a clock that counts instructions: timings repeat.
    #[arg(long)]
    icount: bool,
    /// A prompt instead of a command.
    #[arg(long, conflicts_with = "command")]
    shell: bool,
    /// Memory of the lab, MiB.
    #[arg(long, default_value_t = 6144)]
    memory_mib: u32,
    /// vCPUs of the lab.
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// End the lab after this many seconds.
    #[arg(long, default_value_t = 3600)]
    timeout_s: u64,
    /// NAME=VALUE in the command's environment; may be given several times.
    #[arg(long = "env", value_name = "NAME=VALUE")]
    envs: Vec<String>,
    /// A folder that the command can write to, as /run/lab/exchange.
    #[arg(long, value_name = "DIR")]
    exchange: Option<PathBuf>,
    /// The command and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// What runs in a lab, and on what.
#[derive(Debug)]
pub(crate) struct Lab {
    /// The clock counts instructions; implies one vCPU.
    pub(crate) icount: bool,
    /// A prompt on this terminal instead of a command.
    pub(crate) shell: bool,
    /// Memory, MiB.
    pub(crate) memory_mib: u32,
    /// vCPUs.
    pub(crate) cpus: u32,
    /// Ended when it takes longer.
    pub(crate) timeout: Duration,
    /// Added to the command's environment.
    pub(crate) envs: Vec<(String, String)>,
    /// Writable from inside, as `/run/lab/exchange`.
    pub(crate) exchange: Option<PathBuf>,
    /// Program and arguments.
    pub(crate) command: Vec<String>,
}

impl Lab {
    /// Prepares what is missing, starts the lab, and waits for the command.
    ///
    /// # Errors
    ///
    /// When the lab cannot be built or does not come up, or when the time is over; a command that
    /// fails is an [`Outcome`].
    pub(crate) fn run(&self) -> Result<Outcome> {
        if !self.shell && self.command.is_empty() {
            bail!("no command: use `cargo xtask lab -- CMD...`, or `--shell` for a prompt");
        }
        let host = host::prepare()?;
        let initramfs = initramfs::prepare(&host)?;
        machine::run(self, &host, &initramfs)
    }
}

/// `cargo xtask lab`: the command's exit status becomes ours.
pub(crate) fn run_command(args: &Args) -> Result<ExitCode> {
    let envs = args
        .envs
        .iter()
        .map(|pair| {
            let (name, value) = pair
                .split_once('=')
                .with_context(|| format!("--env {pair}: want NAME=VALUE"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect::<Result<_>>()?;
    let lab = Lab {
        icount: args.icount,
        shell: args.shell,
        memory_mib: args.memory_mib,
        cpus: args.cpus,
        timeout: Duration::from_secs(args.timeout_s),
        envs,
        exchange: args.exchange.clone(),
        command: args.command.clone(),
    };
    Ok(ExitCode::from(lab.run()?.status))
}
