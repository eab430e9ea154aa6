//! What `cargo xtask bench` measures.
//!
//! - [`agent`]: the guest's sign of life: the agent's first answer to `Hello`, through any vsock.
//! - [`vmm`]: our VMM, started as the daemon starts it.
//! - [`qemu`]: its peer, QEMU's microvm, with the same kernel, agent and memory.
//! - [`pods`]: what the kubelet sees: a pod, a container, its first output.
//! - [`net`](mod@net): a guest's network interface; exec and attach.
//! - [`pull`](mod@pull): what pulls cost.
//! - [`read`](mod@read): what reading an image costs a guest.
//! - [`files`](mod@files): what a pod's volumes are capable of.
//! - [`program`]: programs that measure inside guests.
//! - [`memory`]: what a VMM takes beside its guest's RAM.
//! - [`table`]: medians, ratios, and how they are printed.
//!
//! What starts guests runs in the lab on the instruction clock, on one CPU: times repeat there, and
//! ratios carry over.

mod agent;
pub mod files;
mod memory;
mod net;
mod pods;
pub mod program;
mod pull;
mod qemu;
mod read;
pub mod table;
mod vmm;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use isopod_guest_image::cpio::Archive;
use tempfile::TempDir;

pub use self::files::{files, files_images};
pub use self::net::{net, streams};
pub use self::pull::pull;
pub use self::read::{RANDOM_READS, read, read_images};
use self::table::{Row, Table};
use crate::environment;
use crate::images::elf;

/// Memory of every guest, in MiB.
const MEMORY_MIB: u32 = 256;

/// Processors of a guest that is compared with another's: one, as its host has. Where a guest has more,
/// its device's interrupts may come to another than the one that waits, and every request costs twice
/// as many exits.
const PROCESSORS: u32 = 1;

/// How long a guest may take to answer, on the clock of the lab.
const LIMIT: Duration = Duration::from_secs(60);

/// Debian's `busybox-static`.
const BUSYBOX: &str = "/bin/busybox";

/// What a guest boots with under QEMU: the VMM's own arguments as far as they are not about its
/// hardware. No console under either: every character would be an exit.
const KERNEL_ARGS: &str = "tsc=reliable maxcpus=1 noreplace-smp panic=-1 random.trust_cpu=on \
                           retain_initrd 8250.nr_uarts=0";

/// What guests boot from, and both VMMs, copied into memory: the lab's root is a network file system,
/// and waiting for it is no instruction. A program with many libraries waits the longest.
#[derive(Debug)]
struct Guest {
    vmm: PathBuf,
    qemu: qemu::Installation,
    kernel: PathBuf,
    /// What our VMM shows the guest in the place of the initramfs.
    agent_image: Option<PathBuf>,
    initramfs: PathBuf,
    /// Holds them.
    _folder: TempDir,
}

impl Guest {
    /// A pod's agent in an initramfs, as the peer boots it.
    fn unpacking() -> Result<Self> {
        let from = environment::path(environment::INITRAMFS)?;
        Self::of(&fs::read(&from).with_context(|| format!("reading {}", from.display()))?)
    }

    /// What a pod boots from.
    fn in_memory() -> Result<Self> {
        let mut guest = Self::unpacking()?;
        let from = environment::path(environment::AGENT_IMAGE)?;
        let image = guest.kernel.with_file_name("agent.erofs");
        fs::copy(&from, &image).with_context(|| format!("copying {}", from.display()))?;
        guest.agent_image = Some(image);
        Ok(guest)
    }

    /// A pod's kernel with busybox as `/bin/busybox`, a script as PID 1, and programs with their
    /// libraries, each under a name.
    fn of_script(folders: &[&str], script: &str, programs: &[(&Path, &str)]) -> Result<Self> {
        let mut archive = Archive::new();
        let mut made: BTreeSet<PathBuf> = folders.iter().map(PathBuf::from).collect();
        for folder in folders {
            archive.directory(folder, 0o755);
        }
        let mut files = vec![(PathBuf::from(BUSYBOX), PathBuf::from(BUSYBOX))];
        for (program, name) in programs {
            let libraries = elf::libraries(program)?;
            files.extend(libraries.into_iter().map(|path| (path.clone(), path)));
            files.push((program.to_path_buf(), PathBuf::from(name)));
        }
        for (from, to) in files {
            let to = to.strip_prefix("/").context("paths are absolute")?;
            let folders: Vec<&Path> = to.ancestors().skip(1).collect();
            for folder in folders.into_iter().rev() {
                if folder.components().next().is_some() && made.insert(folder.to_owned()) {
                    archive.directory(&folder.display().to_string(), 0o755);
                }
            }
            let bytes = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
            archive.file(&to.display().to_string(), 0o755, &bytes)?;
        }
        archive.file("init", 0o755, script.as_bytes())?;
        Self::of(&archive.finish())
    }

    /// A pod's kernel with these bytes as the initramfs.
    fn of(initramfs: &[u8]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("guest-")
            .tempdir_in("/run")?;
        let guest = Self {
            vmm: folder.path().join("isopod-vmm"),
            qemu: qemu::Installation::copy(&folder.path().join("qemu"))?,
            kernel: folder.path().join("vmlinux"),
            agent_image: None,
            initramfs: folder.path().join("initramfs.cpio"),
            _folder: folder,
        };
        fs::copy(environment::binary("isopod-vmm")?, &guest.vmm).context("copying isopod-vmm")?;
        let from = environment::path(environment::KERNEL)?;
        fs::copy(&from, &guest.kernel).with_context(|| format!("copying {}", from.display()))?;
        fs::write(&guest.initramfs, initramfs).context("writing the initramfs")?;
        Ok(guest)
    }
}

/// Measures everything about starting, `repetitions` times.
///
/// # Errors
/// A guest did not answer, or the daemon failed.
pub fn start(repetitions: u32) -> Result<Table> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let (guest, unpacking) = (Guest::in_memory()?, Guest::unpacking()?);
    let (mut ours, mut unpacked, mut peers) = (Vec::new(), Vec::new(), Vec::new());
    let mut sizes = Vec::new();
    // The first of each fills the page cache and does not count. They alternate, so that whatever
    // drifts does so for both.
    for repetition in 0..=repetitions {
        let (took, bytes) = runtime.block_on(vmm::start(&guest))?;
        let (from_initramfs, _) = runtime.block_on(vmm::start(&unpacking))?;
        let peer = runtime.block_on(qemu::start(&unpacking))?;
        eprintln!("vmm {took:?}, from the initramfs {from_initramfs:?}, qemu {peer:?}");
        if repetition > 0 {
            ours.push(took);
            unpacked.push(from_initramfs);
            peers.push(peer);
            sizes.push(bytes);
        }
    }
    let pods = pods::start(repetitions)?;
    Ok(Table {
        rows: vec![
            Row::times(
                "start.vmm_to_agent",
                "VMM's process to the agent's first answer",
                ours,
            ),
            Row::times(
                "start.vmm_to_agent_initramfs",
                "the same from an initramfs",
                unpacked,
            ),
            Row::times(
                "start.qemu_microvm",
                "the same initramfs under QEMU's microvm",
                peers,
            ),
            Row::times(
                "start.run_pod_sandbox",
                "RunPodSandbox to its answer",
                pods.sandbox,
            ),
            Row::times(
                "start.first_output",
                "CreateContainer and StartContainer to the first output in the log",
                pods.first_output,
            ),
            Row::sizes(
                "start.vmm_memory",
                "the VMM's resident memory beside guest RAM and the agent's image",
                sizes,
            ),
        ],
        ratios: ["start.vmm_to_agent", "start.vmm_to_agent_initramfs"]
            .map(|row| (row, "qemu-microvm", "start.qemu_microvm"))
            .into(),
    })
}
