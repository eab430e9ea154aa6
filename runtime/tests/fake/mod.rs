//! A node whose pods boot nothing: its VMM is `examples/fake-isopod-vmm/`. Needs root, for
//! folders in `/run`, and no KVM.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::node::{Images, Node, Options, run};
use isopod_tests::tampered::{Fault, Tampered};

/// How long a guest may take to start, where the test is not about that.
pub(crate) const START_TIMEOUT_MS: i64 = 20_000;

/// The example that stands in for the VMM, which cargo builds beside this test.
fn vmm() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let target = test
        .parent()
        .and_then(Path::parent)
        .context("no target folder")?;
    let fake = target.join("examples/fake-isopod-vmm");
    ensure!(
        fake.exists(),
        "{} is missing: cargo build -p isopod --examples",
        fake.display()
    );
    Ok(fake)
}

/// Runs a test on a node with an image, and the leak check at its end.
pub(crate) fn on_fake(start_timeout_ms: i64, test: impl FnOnce(&Node) -> Result<()>) -> Result<()> {
    on_fake_with(
        |options| options.vm("start_timeout_ms", start_timeout_ms),
        test,
    )
}

/// [`on_fake`], with more options.
pub(crate) fn on_fake_with(
    more: impl FnOnce(Options) -> Options,
    test: impl FnOnce(&Node) -> Result<()>,
) -> Result<()> {
    let registry = Tampered::busybox(Fault::None)?;
    let options = Options::host()
        .images(Images::Endpoint(registry.host()))
        .kernel("/dev/null")
        .vm("agent_image", "/dev/null")
        .vm("vmm", vmm()?.display().to_string())
        .vm("kvm", "/dev/null")
        .vm("scratch_mib", 64)
        .vm("start_timeout_ms", START_TIMEOUT_MS);
    run(more(options), test)
}
