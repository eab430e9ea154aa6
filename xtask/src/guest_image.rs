//! `cargo xtask guest-image`: the guest's kernel, and what holds the agent.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use isopod_guest_image::cache::{Cache, digest};
use isopod_guest_image::kernel::{KernelBuild, SOURCE_PACKAGE, Step};
use isopod_guest_image::{agent_image, initramfs, loadable};

use crate::progress::{say, seconds};
use crate::{build, project, setup};

/// Options of `cargo xtask guest-image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Build all a second time, elsewhere, and compare the bytes (takes as long as a first build)
    #[arg(long)]
    check_reproducible: bool,
    /// Only the kernel
    #[arg(long)]
    kernel_only: bool,
}

/// What a guest boots from.
#[derive(Debug, Clone)]
pub(crate) struct GuestImage {
    /// The kernel, an uncompressed ELF image.
    pub(crate) kernel: PathBuf,
    /// The agent's image.
    pub(crate) agent_image: PathBuf,
    /// The agent in an initramfs.
    pub(crate) initramfs: PathBuf,
}

/// Builds what is asked for and prints it, one file a line: path, length in bytes, SHA-256.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let cache = project::cache();
    let files = if arguments.kernel_only {
        vec![kernel(&cache)?]
    } else {
        let image = all()?;
        vec![image.kernel, image.agent_image, image.initramfs]
    };
    for file in &files {
        println!(
            "{}  {} bytes  sha256:{}",
            file.display(),
            file.metadata()?.len(),
            digest(file)?
        );
    }
    if arguments.check_reproducible {
        let elsewhere = tempfile::tempdir_in(cache.root())?;
        let other = Cache::at(elsewhere.path());
        same(&files[0], &kernel(&other)?)?;
        if let [_, image, initramfs] = &files[..] {
            let agent = build::agent()?;
            same(image, &agent_image::build(&other, &agent)?)?;
            same(initramfs, &initramfs::build(&other, &agent)?)?;
        }
        say("A second build gave the same bytes");
    }
    Ok(())
}

/// Builds all, or finds them in the cache.
pub(crate) fn all() -> Result<GuestImage> {
    let cache = project::cache();
    let kernel = kernel(&cache)?;
    setup::packages(&[setup::Need::Build])?;
    let agent = build::agent()?;
    Ok(GuestImage {
        kernel,
        agent_image: agent_image::build(&cache, &agent)?,
        initramfs: initramfs::build(&cache, &agent)?,
    })
}

fn kernel(cache: &Cache) -> Result<PathBuf> {
    setup::packages(&[setup::Need::Kernel])?;
    let build = KernelBuild {
        tarball: Path::new("/usr/src").join(format!("{SOURCE_PACKAGE}.tar.xz")),
        source_version: setup::installed_version(SOURCE_PACKAGE)?
            .with_context(|| format!("{SOURCE_PACKAGE} is not installed"))?,
        jobs: std::thread::available_parallelism()?.get() + 1,
    };
    let begin = Instant::now();
    let mut built = false;
    let kernel = build.build(cache, |step| {
        built = true;
        match step {
            Step::Unpack => say("Guest kernel: unpacking the source"),
            Step::LeftOut(patch) => say(&format!(
                "Guest kernel: {patch} does not fit this source and is left out; guests start slower"
            )),
            Step::Configure => say("Guest kernel: configuring"),
            Step::Compile => {
                say("Guest kernel: compiling, once (about five minutes on two cores)");
            }
        }
    })?;
    if built {
        say(&format!(
            "Guest kernel: done after {}",
            seconds(begin.elapsed())
        ));
    }
    Ok(loadable::build(cache, &kernel.vmlinux)?)
}

fn same(one: &Path, other: &Path) -> Result<()> {
    ensure!(one != other, "{} was not built again", one.display());
    if digest(one)? != digest(other)? {
        let kept = one.with_extension("other");
        std::fs::copy(other, &kept)?;
        bail!(
            "a second build differs: compare {} and {}",
            one.display(),
            kept.display()
        );
    }
    Ok(())
}
