//! `Status`: whether pods can run.
//!
//! `RuntimeReady` says that what every pod needs can be opened, `NetworkReady` that a pod would get a
//! network. While it would not the kubelet keeps the node `NotReady`; with CNI disabled it always
//! does, which is right: pods that have nothing but loopback are of no use to a cluster.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use isopod_proto::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus,
    StatusRequest, StatusResponse,
};
use serde_json::json;

use super::Cri;
use super::handler::KNOWN;
use crate::chain::chain;

/// How long the network's plugins may take to say how they are: the kubelet asks every few seconds.
const NETWORK_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn status(cri: &Cri, request: &StatusRequest) -> StatusResponse {
    let handlers = KNOWN.iter().map(|name| RuntimeHandler {
        name: (*name).to_owned(),
        features: Some(RuntimeHandlerFeatures {
            recursive_read_only_mounts: true,
            user_namespaces: true,
        }),
    });
    let mut response = StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![runtime(cri), network(cri).await],
        }),
        runtime_handlers: handlers.collect(),
        features: Some(RuntimeFeatures {
            supplemental_groups_policy: true,
            ..Default::default()
        }),
        ..Default::default()
    };
    if request.verbose {
        let info = json!({
            "sandboxes": cri.sandboxes.list().len(),
            "containers": cri.containers.list().len(),
            "config": *cri.config,
        });
        response.info.insert("info".to_owned(), info.to_string());
        // Under containerd's names: tools ask which file system it is on.
        let folders = json!({
            "rootDir": cri.config.root_dir,
            "stateDir": cri.config.state_dir,
        });
        response
            .info
            .insert("config".to_owned(), folders.to_string());
    }
    response
}

fn runtime(cri: &Cri) -> RuntimeCondition {
    let vm = &cri.config.vm;
    let root = vm.root();
    let needed = [
        (vm.kvm.as_path(), true),
        (vm.vmm.as_path(), false),
        (vm.kernel.as_path(), false),
        (root.path(), false),
    ];
    let missing = needed
        .into_iter()
        .find_map(|(path, write)| unusable(path, write));
    RuntimeCondition {
        r#type: "RuntimeReady".to_owned(),
        status: missing.is_none(),
        reason: if missing.is_some() {
            "VirtualMachinesUnavailable".to_owned()
        } else {
            String::new()
        },
        message: missing.unwrap_or_default(),
    }
}

fn unusable(path: &Path, write: bool) -> Option<String> {
    let error = File::options().read(true).write(write).open(path).err()?;
    Some(format!(
        "{} cannot be opened: {error}; see `isopod doctor`",
        path.display()
    ))
}

async fn network(cri: &Cri) -> RuntimeCondition {
    let problem = match tokio::time::timeout(NETWORK_LIMIT, cri.networks.ready()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(chain(&error)),
        Err(_elapsed) => Some(format!(
            "the CNI plugins did not answer STATUS within {} s",
            NETWORK_LIMIT.as_secs()
        )),
    };
    let reason = match &problem {
        None => "",
        // What the kubelet's other runtimes say.
        Some(_) => "NetworkPluginNotReady",
    };
    RuntimeCondition {
        r#type: "NetworkReady".to_owned(),
        status: problem.is_none(),
        reason: reason.to_owned(),
        message: problem.unwrap_or_default(),
    }
}
