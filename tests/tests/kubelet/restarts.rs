//! Containers that end: restart policies, crash loops, and the logs of all that.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::kubelet::{Kubelet, container, pod, restarts, run, status};
use isopod_tests::log::{Stream, parse, texts};
use isopod_tests::network::isolated;
use isopod_tests::node::Options;
use isopod_tests::wait::{LIMIT, wait_for};
use serde_json::{Value, json};

/// Lines that a container prints, and the size at which its log is rotated: less than a tenth of them.
const LINES: usize = 6000;
const LOG_SIZE: &str = "16Ki";
const LOG_FILES: usize = 4;

#[test]
fn containers_are_restarted_as_their_pods_want_it() -> Result<()> {
    let settings = json!({
        "containerLogMaxSize": LOG_SIZE, "containerLogMaxFiles": LOG_FILES,
        "containerLogMonitorInterval": "3s",
    });
    isolated(|| {
        run(Options::kvm(), &settings, |kubelet| {
            let state = kubelet.test_folder("state")?;
            kubelet.add(&ending("never", "Never", "exit 3", &state))?;
            kubelet.add(&ending("always", "Always", LAST_WORDS, &state))?;
            let once = "test -f /state/once && exit 0; touch /state/once; exit 4";
            kubelet.add(&ending("on-failure", "OnFailure", once, &state))?;
            kubelet.add(&ending("talks", "Never", &talk(), &state))?;
            never(kubelet)?;
            on_failure(kubelet)?;
            always(kubelet)?;
            log_is_rotated(kubelet)
        })
    })
}

const LAST_WORDS: &str = "echo a round; echo last words > /dev/termination-log; exit 5";

/// Prints numbered lines, at a pace at which the log can be rotated.
fn talk() -> String {
    format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; \
         test $((i % 20)) -eq 0 && usleep 100000; done; exit 0"
    )
}

fn ending(name: &str, policy: &str, script: &str, state: &Path) -> Value {
    let mounts = json!({ "volumeMounts": [{ "name": "state", "mountPath": "/state" }] });
    pod(
        name,
        &json!({
            "restartPolicy": policy,
            "containers": [container("main", script, &mounts)],
            "volumes": [{ "name": "state", "hostPath": { "path": state } }],
        }),
    )
}

fn never(kubelet: &Kubelet<'_>) -> Result<()> {
    let pod = kubelet.wait_pod("never", "to fail", |pod| pod["status"]["phase"] == "Failed")?;
    let ended = &status(&pod, "main").context("no container")?["state"]["terminated"];
    assert_eq!(
        (&ended["exitCode"], &ended["reason"]),
        (&json!(3), &json!("Error"))
    );
    assert_eq!(restarts(&pod, "main"), 0);
    Ok(())
}

fn on_failure(kubelet: &Kubelet<'_>) -> Result<()> {
    let pod = kubelet.wait_pod("on-failure", "to succeed", |pod| {
        pod["status"]["phase"] == "Succeeded"
    })?;
    assert_eq!(restarts(&pod, "main"), 1);
    let main = status(&pod, "main").context("no container")?;
    assert_eq!(main["lastState"]["terminated"]["exitCode"], 4);
    assert_eq!(main["state"]["terminated"]["exitCode"], 0);
    Ok(())
}

/// The same virtual machine runs every round.
fn always(kubelet: &Kubelet<'_>) -> Result<()> {
    let waits = |pod: &Value| {
        let state = status(pod, "main").map(|main| &main["state"]["waiting"]["reason"]);
        state.is_some_and(|reason| reason == "CrashLoopBackOff")
    };
    let first = kubelet.wait_pod("always", "to be in a crash loop", waits)?;
    let last = &status(&first, "main").context("no container")?["lastState"]["terminated"];
    assert_eq!(last["exitCode"], 5, "{first:#}");
    assert_eq!(last["message"], "last words\n", "{first:#}");
    let before = machines(kubelet, "always")?;
    let rounds = restarts(&first, "main");
    kubelet.wait_pod("always", "two more rounds", |pod| {
        restarts(pod, "main") >= rounds + 2
    })?;
    assert_eq!(machines(kubelet, "always")?, before);
    Ok(())
}

/// The sandboxes of a pod.
fn machines(kubelet: &Kubelet<'_>, name: &str) -> Result<Vec<String>> {
    let name = format!("{name}-node");
    let pods = kubelet.node().cri().pods(None)?;
    let of_pod = pods.into_iter().filter(|pod| {
        let metadata = pod.metadata.as_ref();
        metadata.is_some_and(|metadata| metadata.name == name)
    });
    Ok(of_pod.map(|pod| pod.id).collect())
}

/// What is left of the log goes to the last line without a gap, in as many files as are wanted.
fn log_is_rotated(kubelet: &Kubelet<'_>) -> Result<()> {
    let pod = kubelet.wait_pod("talks", "to end", |pod| {
        pod["status"]["phase"] == "Succeeded"
    })?;
    let uid = pod["metadata"]["uid"].as_str().context("no uid")?;
    let folder = format!("/var/log/pods/default_talks-node_{uid}/main");
    // The kubelet may still be packing one of them.
    let mut last = Ok(());
    let found = wait_for("the log's files", LIMIT, || {
        last = check_log(Path::new(&folder));
        last.is_ok().then_some(())
    });
    last.and(found)
}

fn check_log(folder: &Path) -> Result<()> {
    let files = log_files(folder)?;
    ensure!((2..=LOG_FILES).contains(&files.len()), "{files:?}");
    let mut lines = Vec::new();
    for file in &files {
        let log = if file.extension().is_some_and(|extension| extension == "gz") {
            let mut log = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(fs::File::open(file)?);
            std::io::Read::read_to_end(&mut decoder, &mut log)?;
            log
        } else {
            fs::read(file)?
        };
        lines.extend(texts(&parse(&log)?, Stream::Stdout));
    }
    let first = LINES - lines.len() + 1;
    ensure!(first > 1, "all lines are there: nothing was rotated away");
    let wanted: Vec<_> = (first..=LINES).map(|line| format!("line {line}")).collect();
    let gap = lines
        .iter()
        .zip(&wanted)
        .find(|(line, wanted)| line != wanted);
    ensure!(gap.is_none(), "a gap: {gap:?} in {files:?}");
    Ok(())
}

/// A container's log files, the oldest first: rotated ones have the time in their names.
fn log_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = entries.collect::<Result<Vec<_>, _>>()?;
    ensure!(!files.is_empty(), "no files in {}", folder.display());
    files.sort();
    // `0.log` is the newest, and sorts before all others.
    files.rotate_left(1);
    Ok(files)
}
