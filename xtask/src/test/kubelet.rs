//! `cargo xtask test kubelet [-- FILTER]`: a real kubelet, standalone, with Isopod as its only runtime.

use anyhow::Result;

use super::Count;
use super::e2e;
use super::hosts::Parts;
use crate::progress::step;
use crate::{setup, test_images};

/// Builds everything, and runs the tests that match the filter.
pub(super) fn run(filter: &[String]) -> Result<Count> {
    setup::packages(setup::Need::ALL)?;
    let tools = setup::kubelet()?;
    let parts = Parts::build(tools, test_images::build)?;
    let binary = e2e::test_binary("kubelet")?;
    step("Running a kubelet's pods in microVMs", || {
        e2e::in_microvms(&binary, &parts, filter)
    })
}
