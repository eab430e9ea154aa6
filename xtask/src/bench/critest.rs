//! `cargo xtask bench critest`: critest's own benchmarks of pods, containers and images.
//!
//! They run on the machine's own clock, in the lab too: their guests live for long, and such a one may
//! stand still on the clock that counts instructions ([`Clock::Instructions`](super::harness::Clock)).
//! So in the lab they compare runs on one machine, and no more. The results are kept as critest writes
//! them.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use crate::lab::{self, Job};
use crate::{build, guest_image, kvm, project, setup, test_images};

/// How long a run may take by the wall clock.
const TIMEOUT: Duration = Duration::from_secs(60 * 60);

/// Memory of the emulated host, MiB: a daemon, its images and a guest.
const MEMORY_MIB: u32 = 4096;

/// Where the lab shows the folder that outlives it.
const EXCHANGE: &str = "/run/lab/exchange";

/// How long critest waits for one sample, in seconds: the lab is slow.
const SAMPLE_LIMIT_S: u32 = 1800;

/// An image that critest's other images have, too.
const IMAGE: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// Options of `cargo xtask bench critest`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// How many pods, containers and pulls there are; one at a time
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repetitions: u32,
}

/// One of critest's files of results.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Results {
    operations_names: Vec<String>,
    datapoints: Vec<Datapoint>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Datapoint {
    operations_durations_ns: Vec<u64>,
}

/// Builds what is measured, measures, keeps the results and prints each operation's median.
pub(super) fn run(arguments: &Arguments) -> Result<ExitCode> {
    setup::packages(setup::Need::ALL)?;
    let image = guest_image::all()?;
    let parts = [
        ("ISOPOD_TEST_BIN_DIR", build::node()?),
        ("ISOPOD_TEST_KERNEL", image.kernel),
        ("ISOPOD_TEST_AGENT_IMAGE", image.agent_image),
        ("ISOPOD_TEST_TOOLS", setup::critest()?),
        ("ISOPOD_TEST_IMAGES", test_images::critest()?),
    ];
    let runner = build::test_program("isopod-critest")?;
    let folder = project::target().join("bench/critest");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    fs::write(
        folder.join("benchmark.yaml"),
        parameters(arguments.repetitions),
    )?;
    let seen = match kvm::unusable() {
        Some(_) => Path::new(EXCHANGE),
        None => &folder,
    };
    let mut command: Vec<String> = ["unshare", "--net", "--mount", "--propagation", "private"]
        .map(str::to_owned)
        .into();
    command.extend([runner, seen.to_owned()].map(|path| path.display().to_string()));
    let mut job = Job::new(command)?;
    job.memory_mib = MEMORY_MIB;
    job.timeout = Some(TIMEOUT);
    job.exchange = Some(folder.clone());
    for (name, path) in parts {
        job.env.push((name.to_owned(), path.display().to_string()));
    }
    job.env.push(("ISOPOD_REQUIRE_KVM".into(), "1".into()));
    job.env
        .push(("ISOPOD_TEST_DATA".into(), "/var/lib/isopod".into()));
    let status = lab::where_kvm_is(&job)?;
    ensure!(status == 0, "the benchmarks ended with status {status}");
    print(&folder)?;
    Ok(ExitCode::SUCCESS)
}

fn parameters(repetitions: u32) -> String {
    let mut text = format!("imagePullingBenchmarkImage: {IMAGE}\n");
    for what in ["containers", "pods", "images"] {
        text.push_str(&format!("{what}Number: {repetitions}\n"));
        text.push_str(&format!("{what}NumberParallel: 1\n"));
    }
    for what in ["container", "pod", "image", "podContainerStart"] {
        text.push_str(&format!(
            "{what}BenchmarkTimeoutSeconds: {SAMPLE_LIMIT_S}\n"
        ));
    }
    text
}

fn print(folder: &Path) -> Result<()> {
    let mut files: Vec<_> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .collect();
    files.sort();
    ensure!(!files.is_empty(), "critest left no results");
    for file in files {
        let text = fs::read_to_string(&file)?;
        let results: Results =
            serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))?;
        println!("{}", file.display());
        for (name, median) in medians(&results) {
            println!("    {name:<20} {:>12.3} ms", median / 1e6);
        }
    }
    Ok(())
}

/// Each operation's median, in nanoseconds; of an even number the lower one.
#[expect(
    clippy::cast_precision_loss,
    reason = "a duration of 2^53 ns is a hundred days"
)]
fn medians(results: &Results) -> Vec<(&str, f64)> {
    let operations = results.operations_names.iter().enumerate();
    let median = |index: usize| {
        let points = results.datapoints.iter();
        let mut durations: Vec<u64> = points
            .filter_map(|point| point.operations_durations_ns.get(index).copied())
            .collect();
        durations.sort_unstable();
        let middle = durations.len().checked_sub(1)? / 2;
        Some(*durations.get(middle)? as f64)
    };
    operations
        .filter_map(|(index, name)| Some((name.as_str(), median(index)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_of_each_operation() {
        let results: Results = serde_json::from_str(
            r#"{ "operationsNames": ["A", "B"], "numParallel": 1, "datapoints": [
                { "operationsDurationsNs": [5, 1], "sampleIndex": 0 },
                { "operationsDurationsNs": [1, 2] },
                { "operationsDurationsNs": [3, 9] } ] }"#,
        )
        .unwrap();
        assert_eq!(medians(&results), [("A", 3.0), ("B", 2.0)]);
        let none: Results =
            serde_json::from_str(r#"{ "operationsNames": ["A"], "datapoints": [] }"#).unwrap();
        assert_eq!(medians(&none), []);
    }
}
