//! Measures and prints; what and how is [`isopod_tests::bench`]'s. Started by `cargo xtask bench`.
//!
//! `isopod-bench start REPETITIONS`
//! `isopod-bench net REPETITIONS`
//! `isopod-bench streams REPETITIONS`
//! `isopod-bench pull REPETITIONS CACHE`
//! `isopod-bench read REPETITIONS`, with the folder for `ISOPOD_TEST_IMAGES` that
//! `isopod-bench read-images CACHE READER` prints
//! `isopod-bench fs REPETITIONS`, likewise with `isopod-bench fs-images CACHE PROGRAM`

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use isopod_tests::bench;

/// Where the results are kept as JSON, if they are.
const RESULTS: &str = "ISOPOD_BENCH_RESULTS";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().context("REPETITIONS is a number");
    let table = match arguments.as_slice() {
        ["start", repetitions] => bench::start(number(repetitions)?)?,
        ["net", repetitions] => bench::net(number(repetitions)?)?,
        ["streams", repetitions] => bench::streams(number(repetitions)?)?,
        ["pull", repetitions, cache] => bench::pull(number(repetitions)?, Path::new(cache))?,
        ["read", repetitions] => bench::read(number(repetitions)?)?,
        ["fs", repetitions] => bench::files(number(repetitions)?)?,
        [what @ ("read-images" | "fs-images"), cache, program] => {
            let build = match *what {
                "read-images" => bench::read_images,
                _ => bench::files_images,
            };
            println!("{}", build(Path::new(cache), Path::new(program))?.display());
            return Ok(());
        }
        _ => bail!(
            "usage: isopod-bench start | net | streams | read | fs REPETITIONS, \
             pull REPETITIONS CACHE, or read-images | fs-images CACHE PROGRAM"
        ),
    };
    print!("{table}");
    if let Some(path) = std::env::var_os(RESULTS) {
        std::fs::write(&path, table.json()?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}
