//! The node under the pods: its daemon ends and comes back, the machine boots anew, its disk fills up.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use isopod_tests::kubelet::{Kubelet, container, pod, restarts, run};
use isopod_tests::network::isolated;
use isopod_tests::node::{DataDir, Options, image};
use isopod_tests::wait::{LIMIT, wait_for};
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::fstatvfs;
use serde_json::{Value, json};

const PODS: [&str; 2] = ["one", "two"];

/// The image file system, and how much of it has to be free.
const DISK_MIB: u32 = 512;
const FREE: &str = "128Mi";
/// What is left when the test has filled it.
const LEFT_MIB: u64 = 48;

#[test]
fn pods_outlive_the_daemon_and_come_back_when_the_node_boots() -> Result<()> {
    isolated(|| {
        run(Options::kvm(), &json!({}), |kubelet| {
            let state = kubelet.test_folder("state")?;
            for name in PODS {
                kubelet.add(&counting(name, &state))?;
            }
            let ids = ready(kubelet)?;
            // A container is ready before its program has come to its first line.
            wait_for("pods that count", LIMIT, || counts(&state).ok())?;
            let node = kubelet.node();
            node.kill_daemon();
            let before = counts(&state)?;
            wait_for("pods that go on without a daemon", LIMIT, || {
                let now = counts(&state).ok()?;
                let goes_on = |name: &&str| now.get(*name) > before.get(*name);
                PODS.iter().all(goes_on).then_some(())
            })?;
            node.start_daemon()?;
            assert_eq!(ready(kubelet)?, ids, "after SIGKILL");
            node.stop_daemon()?;
            node.start_daemon()?;
            assert_eq!(ready(kubelet)?, ids, "after SIGTERM");
            // A kubelet that starts anew finds what the old one left.
            kubelet.stop()?;
            kubelet.start()?;
            assert_eq!(ready(kubelet)?, ids, "after the kubelet's restart");
            reboot(kubelet, &ids)?;
            for name in PODS {
                kubelet.remove(name)?;
            }
            PODS.iter().try_for_each(|name| kubelet.wait_gone(name))
        })
    })
}

/// A pod that counts in a file of its own.
fn counting(name: &str, state: &Path) -> Value {
    let script = format!(
        "i=0; while :; do i=$((i+1)); echo $i > /state/.{name}; \
         mv /state/.{name} /state/{name}; sleep 0.5; done"
    );
    let more = json!({
        "volumeMounts": [{ "name": "state", "mountPath": "/state" }],
        "livenessProbe": {
            "exec": { "command": ["test", "-d", "/state"] },
            "periodSeconds": 3, "timeoutSeconds": 60,
        },
    });
    pod(
        name,
        &json!({
            "containers": [container("main", &script, &more)],
            "volumes": [{ "name": "state", "hostPath": { "path": state } }],
        }),
    )
}

fn counts(state: &Path) -> Result<BTreeMap<String, u64>> {
    PODS.iter()
        .map(|name| {
            let text = fs::read_to_string(state.join(name))?;
            Ok(((*name).to_owned(), text.trim().parse()?))
        })
        .collect()
}

/// Waits until all pods are ready; the ids of their containers.
fn ready(kubelet: &Kubelet<'_>) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for name in PODS {
        kubelet.wait_ready(name)?;
        ids.push(kubelet.container_id(name, "main")?);
    }
    Ok(ids)
}

/// Every process of the node ends at once, and what lies in memory is gone.
fn reboot(kubelet: &Kubelet<'_>, before: &[String]) -> Result<()> {
    kubelet.kill();
    kubelet.node().reboot()?;
    kubelet.start()?;
    for name in PODS {
        kubelet.wait_pod(name, "to run again", |pod| restarts(pod, "main") >= 1)?;
    }
    let after = ready(kubelet)?;
    ensure!(
        after.iter().all(|id| !before.contains(id)),
        "{after:?} are from before the boot"
    );
    assert_eq!(kubelet.exec("one", "main", "hostname")?, "one-node");
    Ok(())
}

#[test]
fn images_that_no_pod_uses_go_when_the_disk_fills_up() -> Result<()> {
    let settings = json!({
        "evictionHard": { "imagefs.available": FREE }, "imageMinimumGCAge": "1s",
        "evictionPressureTransitionPeriod": "1s",
    });
    let options = Options::kvm().data(DataDir::Small { mib: DISK_MIB });
    isolated(|| {
        run(options, &settings, |kubelet| {
            let node = kubelet.node();
            let unused = [image("layers"), image("perl")];
            for image in &unused {
                node.cri().pull(image)?;
            }
            let main = container("main", "exec sleep 10000", &json!({}));
            kubelet.add(&pod("stays", &json!({ "containers": [main] })))?;
            kubelet.wait_ready("stays")?;
            ensure!(names(kubelet)?.iter().any(|name| *name == unused[0]));
            let filler = node.root_dir().join("filler");
            fill(&filler)?;
            wait_for("unused images to be removed", LIMIT, || {
                let names = names(kubelet).ok()?;
                unused
                    .iter()
                    .all(|image| !names.contains(image))
                    .then_some(())
            })?;
            fs::remove_file(&filler)?;
            ensure!(names(kubelet)?.contains(&image("busybox")));
            let pod = kubelet.wait_ready("stays")?;
            assert_eq!(restarts(&pod, "main"), 0);
            kubelet.exec("stays", "main", "true").map(drop)
        })
    })
}

/// Makes a file that leaves little room on its file system.
fn fill(path: &Path) -> Result<()> {
    let file = fs::File::create(path)?;
    let at = fstatvfs(&file)?;
    let room = at.blocks_available() * at.fragment_size();
    let length = room.checked_sub(LEFT_MIB << 20).context("it is full")?;
    Ok(posix_fallocate(&file, 0, i64::try_from(length)?)?)
}

/// The names of the node's images.
fn names(kubelet: &Kubelet<'_>) -> Result<Vec<String>> {
    let images = kubelet.node().cri().list_images().context("ListImages")?;
    Ok(images
        .into_iter()
        .flat_map(|image| image.repo_tags)
        .collect())
}
