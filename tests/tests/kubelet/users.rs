//! A pod with `hostUsers: false`, whose ids the kubelet chooses.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};
use isopod_tests::kubelet::{container, is, pod, run};
use isopod_tests::network::isolated;
use isopod_tests::node::Options;
use serde_json::json;

/// What the kubelet gives out first, and a multiple of how many a pod gets.
const RANGE: u32 = 65_536;

#[test]
fn a_pod_without_the_hosts_users_has_the_ids_that_the_kubelet_chose() -> Result<()> {
    isolated(|| {
        run(Options::kvm(), &json!({}), |kubelet| {
            let out = kubelet.test_folder("out")?;
            let mounts = json!([
                { "name": "out", "mountPath": "/out" },
                { "name": "work", "mountPath": "/work" },
            ]);
            let init = "echo first > /work/first; id -u > /out/init";
            let init = container("init", init, &json!({ "volumeMounts": mounts }));
            let main = "cat /work/first; while :; do sleep 0.2; done";
            let probe = json!({ "command": ["/bin/sh", "-c", "touch /work/probed"] });
            let more = json!({
                "volumeMounts": mounts,
                "securityContext": { "runAsUser": 1000, "runAsGroup": 1000 },
                "readinessProbe": { "exec": probe, "timeoutSeconds": 60, "periodSeconds": 3 },
            });
            let main = container("main", main, &more);
            let folder = json!({ "path": out, "type": "Directory" });
            kubelet.add(&pod(
                "users",
                &json!({
                    "hostUsers": false,
                    "securityContext": { "fsGroup": 1234 },
                    "initContainers": [init], "containers": [main],
                    "volumes": [
                        { "name": "out", "hostPath": folder },
                        { "name": "work", "emptyDir": {} },
                    ],
                }),
            ))?;
            let running = kubelet.wait_ready("users")?;
            ensure!(is(&running, "Initialized"), "{running:#}");
            let map = kubelet.exec("users", "main", "cat /proc/self/uid_map")?;
            let map: Vec<u32> = map.split_whitespace().flat_map(str::parse).collect();
            ensure!(
                map.len() == 3
                    && map[0] == 0
                    && map[1] >= RANGE
                    && map[1].is_multiple_of(RANGE)
                    && map[2] == RANGE,
                "{map:?}"
            );
            // The first one wrote as root, the second one as a user in the volume's group, and in one of
            // the image's.
            let owners = "stat -c %u:%g /work/first /work/probed /etc/hosts; id -u; id -G";
            assert_eq!(
                kubelet.exec("users", "main", owners)?,
                "0:1234\n1000:1234\n0:0\n1000\n1000 1234 2000"
            );
            assert_eq!(fs::metadata(out.join("init"))?.uid(), 0);
            kubelet.remove("users")?;
            kubelet.wait_gone("users")
        })
    })
}
