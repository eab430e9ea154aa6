//! The kubelet that the tests run against Isopod, built from the Go module proxy.
//!
//! Kubernetes' own `go.mod` is for its repository, where its libraries lie in folders. `tests/kubelet` has one
//! for the modules as they are published, and the digests of all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use isopod_guest_image::cache::Key;

use super::go;
use crate::progress::step;
use crate::project;

/// The folder of `go.mod` and `go.sum`, from the checkout's root.
const FOLDER: &str = "tests/kubelet";

/// The module with the kubelet.
const MODULE: &str = "k8s.io/kubernetes";

/// The variable that the kubelet has its version in, which Kubernetes' own build sets.
const VERSION: &str = "k8s.io/component-base/version.gitVersion";

/// The folder of `kubelet`, built into the cache if it is not there.
pub(crate) fn kubelet() -> Result<PathBuf> {
    let folder = project::root().join(FOLDER);
    let read = |name: &str| {
        let path = folder.join(name);
        fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let (module, sums) = (read("go.mod")?, read("go.sum")?);
    let version = version(&module).with_context(|| format!("{FOLDER}/go.mod names no {MODULE}"))?;
    let key = Key::default()
        .input("go.mod", &module)
        .input("go.sum", &sums)
        .name();
    project::cache().get_or_make("kubelet", &key, |draft| {
        go::check()?;
        let what = format!("Building the kubelet {version}, once; it takes some ten minutes");
        step(&what, || build(version, &folder, draft))
    })
}

/// Go fetches what is missing from the module proxy, and takes nothing that `go.sum` has not.
fn build(version: &str, folder: &Path, draft: &Path) -> Result<()> {
    let mut build = Command::new("go");
    build
        .args(["build", "-mod=readonly", "-trimpath", "-ldflags"])
        .arg(format!("-s -w -X {VERSION}={version}"))
        .arg("-o")
        .arg(draft.join("kubelet"))
        .arg(format!("{MODULE}/cmd/kubelet"))
        .env("CGO_ENABLED", "0")
        .current_dir(folder);
    go::stdout(&mut build).map(drop)
}

/// The version of [`MODULE`] that a `go.mod` requires.
fn version(module: &str) -> Option<&str> {
    module.lines().find_map(|line| {
        let mut words = line.trim_start_matches("require").split_whitespace();
        let is_it = words.next() == Some(MODULE);
        words.next().filter(|_| is_it)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_is_required() {
        let module = "module a\n\nrequire k8s.io/kubernetes v1.2.3\n";
        assert_eq!(version(module), Some("v1.2.3"));
        let module =
            "require (\n\tk8s.io/kubernetes/x v9.0.0\n\tk8s.io/kubernetes v1.2.4 // a\n)\n";
        assert_eq!(version(module), Some("v1.2.4"));
        assert_eq!(version("module k8s.io/kubernetes\n"), None);
    }
}
