//! Static pods: a file each, which the kubelet watches.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Kubelet, NAME, manifests};
use crate::node::image;
use crate::wait::wait_for;

/// How long a pod may take to become what a test waits for: the kubelet looks at it every ten seconds or
/// so, and waits up to minutes before it tries once more.
const LIMIT: Duration = Duration::from_secs(420);

/// How often the kubelet is asked. On one processor, asking takes time from what is waited for.
const INTERVAL: Duration = Duration::from_secs(1);

/// A pod of this name. It has a second to end by itself, unless `spec` says more.
#[must_use]
pub fn pod(name: &str, spec: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default" },
        "spec": { "terminationGracePeriodSeconds": 1, "enableServiceLinks": false },
    });
    merge(&mut pod["spec"], spec);
    pod
}

/// A busybox container that runs a shell script.
#[must_use]
pub fn container(name: &str, script: &str, more: &Value) -> Value {
    let mut container = json!({
        "name": name,
        "image": image("busybox"),
        "command": ["/bin/sh", "-c", script],
    });
    merge(&mut container, more);
    container
}

fn merge(object: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
}

impl Kubelet<'_> {
    /// Adds a pod.
    ///
    /// # Errors
    /// Its file cannot be written.
    pub fn add(&self, pod: &Value) -> Result<()> {
        let name = pod["metadata"]["name"].as_str().context("no name")?;
        let folder = manifests()?;
        // The kubelet passes over names that start with a dot.
        let draft = folder.join(format!(".{name}"));
        fs::write(&draft, serde_json::to_vec_pretty(pod)?)?;
        fs::rename(&draft, folder.join(format!("{name}.json")))?;
        Ok(())
    }

    /// Removes a pod's file.
    ///
    /// # Errors
    /// There is none.
    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(manifests()?.join(format!("{name}.json"))).context("removing a pod's file")
    }

    /// A pod as the kubelet tells it, or `None` when it knows of none.
    ///
    /// # Errors
    /// The kubelet does not answer.
    pub fn pod(&self, name: &str) -> Result<Option<Value>> {
        let name = format!("{name}-{NAME}");
        let mut pods = self.json("/pods")?;
        let pods = pods["items"].as_array_mut().into_iter().flatten();
        Ok(pods
            .map(Value::take)
            .find(|pod| pod["metadata"]["name"] == name.as_str()))
    }

    /// Waits until a pod is as `check` wants it.
    ///
    /// # Errors
    /// That takes too long; the message has the pod's status.
    pub fn wait_pod(
        &self,
        name: &str,
        what: &str,
        check: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        let mut last = Value::Null;
        let found = wait_for(&format!("{name}: {what}"), LIMIT, || {
            sleep(INTERVAL);
            // A kubelet that was just started may not answer yet.
            let pod = self.pod(name).ok().flatten()?;
            last = pod["status"].clone();
            check(&pod).then_some(pod)
        });
        found.with_context(|| format!("{last:#}"))
    }

    /// Waits until all containers of a pod are ready.
    ///
    /// # Errors
    /// As [`Self::wait_pod`].
    pub fn wait_ready(&self, name: &str) -> Result<Value> {
        self.wait_pod(name, "to be ready", |pod| is(pod, "Ready"))
    }

    /// Waits until the runtime has no sandbox of a pod any more.
    ///
    /// # Errors
    /// That takes too long.
    pub fn wait_gone(&self, name: &str) -> Result<()> {
        let name = format!("{name}-{NAME}");
        wait_for(&format!("{name} to be gone"), LIMIT, || {
            sleep(INTERVAL);
            let pods = self.node().cri().pods(None).ok()?;
            let mut names = pods.into_iter().filter_map(|pod| pod.metadata);
            (!names.any(|metadata| metadata.name == name)).then_some(())
        })
    }

    /// The id of a container of a pod, as the runtime has it.
    ///
    /// # Errors
    /// It was not started.
    pub fn container_id(&self, pod: &str, container: &str) -> Result<String> {
        let pod = self.pod(pod)?.context("no such pod")?;
        let status = status(&pod, container).context("no such container")?;
        let id = status["containerID"].as_str().context("it has no id")?;
        let (runtime, id) = id.split_once("://").context("an id names its runtime")?;
        ensure!(runtime == "isopod", "the runtime is {runtime}");
        Ok(id.to_owned())
    }

    /// Runs a shell script in a container of a pod; its output.
    ///
    /// # Errors
    /// It fails.
    pub fn exec(&self, pod: &str, container: &str, script: &str) -> Result<String> {
        let id = self.container_id(pod, container)?;
        let output = self.node().exec(&id, script)?;
        Ok(String::from_utf8(output)?.trim().to_owned())
    }
}

/// Whether a condition of a pod is true.
#[must_use]
pub fn is(pod: &Value, condition: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|it| it["type"] == condition && it["status"] == "True")
}

/// The status of a container of a pod, init containers included.
#[must_use]
pub fn status<'a>(pod: &'a Value, container: &str) -> Option<&'a Value> {
    let lists = ["containerStatuses", "initContainerStatuses"];
    let mut all = lists
        .into_iter()
        .filter_map(|list| pod["status"][list].as_array())
        .flatten();
    all.find(|status| status["name"] == container)
}

/// How often a container of a pod was restarted.
#[must_use]
pub fn restarts(pod: &Value, container: &str) -> u64 {
    status(pod, container)
        .and_then(|status| status["restartCount"].as_u64())
        .unwrap_or(0)
}
