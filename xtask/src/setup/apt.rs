//! Debian packages: the list, with a reason for each, and their installation.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::progress::{say, step};

/// What packages are needed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Building the guest's kernel.
    Kernel,
    /// Building the binaries.
    Build,
    /// The emulated host of `cargo xtask lab`.
    Lab,
    /// Running the daemon.
    Node,
    /// Serving images in the demo.
    Registry,
    /// Test images.
    TestImages,
    /// Peers that benchmarks compare with.
    Bench,
}

impl Need {
    /// Everything but what only benchmarks need.
    pub(crate) const ALL: &[Self] = &[
        Self::Kernel,
        Self::Build,
        Self::Lab,
        Self::Node,
        Self::Registry,
        Self::TestImages,
    ];
}

/// Package, what needs it, why.
const PACKAGES: &[(&str, &[Need], &str)] = &[
    (
        "linux-source-6.12",
        &[Need::Kernel],
        "the guest kernel's source",
    ),
    (
        "gcc",
        &[Need::Kernel, Need::Build],
        "compiles the guest kernel, links Rust",
    ),
    (
        "libc6-dev",
        &[Need::Kernel, Need::Build],
        "static glibc for the agent",
    ),
    ("make", &[Need::Kernel], "builds the guest kernel"),
    (
        "bc",
        &[Need::Kernel],
        "the kernel's build computes constants with it",
    ),
    (
        "bison",
        &[Need::Kernel],
        "the kernel's configuration parser",
    ),
    (
        "flex",
        &[Need::Kernel],
        "the kernel's configuration scanner",
    ),
    (
        "patch",
        &[Need::Kernel, Need::Build],
        "the guest kernel's patches, and their test",
    ),
    (
        "libelf-dev",
        &[Need::Kernel],
        "objtool, which checks the kernel's object files",
    ),
    (
        "xz-utils",
        &[Need::Kernel, Need::Lab],
        "unpacks the kernel's source and the lab's modules",
    ),
    (
        "libseccomp-dev",
        &[Need::Build],
        "containers' system call filters, linked statically",
    ),
    ("qemu-system-x86", &[Need::Lab], "emulates a host with KVM"),
    (
        "busybox-static",
        &[Need::Lab, Need::Registry, Need::TestImages],
        "the lab's init; a test image",
    ),
    ("kmod", &[Need::Lab], "the lab's kernel modules"),
    (
        "e2fsprogs",
        &[Need::Lab, Need::Node],
        "ext4 for the lab's disk and pods' writable disks",
    ),
    (
        "containernetworking-plugins",
        &[Need::Node],
        "CNI plugins, which make the pods' networks",
    ),
    (
        "iproute2",
        &[Need::Node],
        "looks at the pods' networks in tests",
    ),
    (
        "iptables",
        &[Need::Node],
        "what the CNI plugin portmap makes rules with",
    ),
    (
        "dnsmasq-base",
        &[Need::TestImages],
        "answers pods' questions for names in tests",
    ),
    (
        "erofs-utils",
        &[Need::Build, Need::TestImages],
        "makes the agent's image; fsck.erofs, which checks images' read-only disks",
    ),
    (
        "attr",
        &[Need::TestImages],
        "getfattr, in a test image with extended attributes",
    ),
    (
        "cpio",
        &[Need::TestImages],
        "packs and lists the initramfs that a test made",
    ),
    (
        "docker-registry",
        &[Need::Registry, Need::TestImages],
        "serves images on loopback",
    ),
    (
        "skopeo",
        &[Need::Registry, Need::TestImages],
        "pushes images to the registry",
    ),
    (
        "umoci",
        &[Need::Registry, Need::TestImages],
        "makes OCI images from folders",
    ),
    (
        "systemd",
        &[Need::TestImages],
        "systemd-analyze, which checks the unit in deploy/",
    ),
    ("containerd", &[Need::Bench], "the peer in what pulls cost"),
    (
        "nginx-light",
        &[Need::TestImages],
        "a test image that serves HTTP",
    ),
];

/// Installs those packages of the given needs that are missing.
pub(crate) fn packages(needs: &[Need]) -> Result<()> {
    let mut missing = Vec::new();
    for (name, needed_for, why) in PACKAGES {
        if needed_for.iter().any(|need| needs.contains(need)) && installed_version(name)?.is_none()
        {
            missing.push((*name, *why));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    say("Debian packages are missing:");
    for (name, why) in &missing {
        say(&format!("  {name}: {why}"));
    }
    let names = missing.iter().map(|(name, _)| *name);
    step("Reading Debian's package lists", || {
        apt_get(["update", "-qq"])
    })?;
    // The recommended packages are not needed, and some conflict with a newer qemu-utils.
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    step("Installing packages", || {
        apt_get(install.into_iter().chain(names))
    })
}

/// The version of a package, when it is installed.
pub(crate) fn installed_version(package: &str) -> Result<Option<String>> {
    let output = Command::new("dpkg-query")
        .args([
            "--show",
            "--showformat=${db:Status-Status} ${Version}",
            package,
        ])
        .output()
        .context("running dpkg-query: the project is built and tested on Debian 12")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.strip_prefix("installed ").map(str::to_owned))
}

/// Runs apt-get, as root, asking nothing.
fn apt_get<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let user = Command::new("id")
        .arg("-u")
        .output()
        .context("running id")?;
    ensure!(
        user.stdout.trim_ascii() == b"0",
        "installing packages takes root: run as root, or install them yourself"
    );
    let output = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .output()
        .context("running apt-get")?;
    if !output.status.success() {
        bail!(
            "apt-get failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_is_listed_once_with_a_need_and_a_reason() {
        for (index, (name, needs, why)) in PACKAGES.iter().enumerate() {
            assert!(!needs.is_empty() && !why.is_empty(), "{name}");
            assert!(
                PACKAGES[..index].iter().all(|(other, ..)| other != name),
                "{name}"
            );
        }
    }

    #[test]
    fn a_package_that_does_not_exist_is_not_installed() {
        assert_eq!(installed_version("no-such-package-anywhere").unwrap(), None);
    }
}
