//! Measures and prints; what and how is [`isopod_tests::bench`]'s. Started by `cargo xtask bench`.
//!
//! `isopod-bench start REPETITIONS`

use anyhow::{Context as _, Result, bail};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [what, repetitions] = arguments.as_slice() else {
        bail!("usage: isopod-bench start REPETITIONS");
    };
    let repetitions = repetitions.parse().context("REPETITIONS is a number")?;
    let table = match what.as_str() {
        "start" => isopod_tests::bench::start(repetitions)?,
        other => bail!("there is no benchmark {other:?}"),
    };
    print!("{table}");
    Ok(())
}
