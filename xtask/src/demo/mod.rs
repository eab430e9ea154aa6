//! `cargo xtask demo`: a container from a registry's image, in its own microVM, from nothing.
//!
//! Here: packages, guest image, binaries, test images; each is built once. Then, where KVM is,
//! `inside.sh` starts a registry and the daemon, and runs a pod as people do (`isopod run`) and, with
//! crictl, as the kubelet does. It leaves nothing behind.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::lab::{self, Job};
use crate::progress::say;
use crate::{build, guest_image, kvm, setup, test_images};

/// What runs where KVM is.
const INSIDE: &str = include_str!("inside.sh");

/// Options of `cargo xtask demo`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}

/// Runs it; the exit status is that of the pods' programs.
pub(crate) fn run(_arguments: &Arguments) -> Result<ExitCode> {
    use setup::Need;
    setup::packages(&[
        Need::Kernel,
        Need::Build,
        Need::Node,
        Need::Registry,
        Need::TestImages,
    ])?;
    let emulated = kvm::unusable();
    if emulated.is_some() {
        setup::packages(&[Need::Lab])?;
    }
    let image = guest_image::all()?;
    let binaries = build::node()?;
    let images = test_images::build()?;
    let crictl = crictl();
    if let Some(why) = emulated {
        say(&format!(
            "In an emulated host, some ten times slower: {why}"
        ));
    }
    let mut job = Job::new(["bash", "-c", INSIDE].map(str::to_owned).into())?;
    let mut set = |name: &str, path: &PathBuf| {
        job.env.push((name.to_owned(), path.display().to_string()));
    };
    set("BINARIES", &binaries);
    set("KERNEL", &image.kernel);
    set("AGENT_IMAGE", &image.agent_image);
    set("IMAGES", &images);
    if let Some(folder) = &crictl {
        set("CRICTL", &folder.join("crictl"));
    }
    Ok(ExitCode::from(lab::where_kvm_is(&job)?))
}

/// crictl, where Go is there to build it or it was built before.
fn crictl() -> Option<PathBuf> {
    match setup::crictl() {
        Ok(folder) => Some(folder),
        Err(error) => {
            say(&format!("Without crictl: {error:#}"));
            None
        }
    }
}
