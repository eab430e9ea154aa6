//! `Status`: whether pods can run.
//!
//! `RuntimeReady` says that what every pod needs can be opened. `NetworkReady` is false while pods
//! have nothing but a loopback interface: the kubelet then keeps the node `NotReady` and gives it no
//! pods that need a network, which is right; `crictl` does not look at it, so pods made by hand run.

use std::fs::File;
use std::path::Path;

use isopod_proto::cri::{
    RuntimeCondition, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus,
    StatusRequest, StatusResponse,
};
use serde_json::json;

use super::Cri;
use super::handler::KNOWN;

pub(super) fn status(cri: &Cri, request: &StatusRequest) -> StatusResponse {
    let handlers = KNOWN.iter().map(|name| RuntimeHandler {
        name: (*name).to_owned(),
        features: Some(RuntimeHandlerFeatures {
            // Read-only is read-only for everything below, whether or not that was asked for.
            recursive_read_only_mounts: true,
            user_namespaces: false,
        }),
    });
    let mut response = StatusResponse {
        status: Some(RuntimeStatus {
            conditions: vec![runtime(cri), network()],
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
    }
    response
}

fn runtime(cri: &Cri) -> RuntimeCondition {
    let vm = &cri.config.vm;
    let needed = [
        (&vm.kvm, true),
        (&vm.vmm, false),
        (&vm.kernel, false),
        (&vm.initramfs, false),
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

fn network() -> RuntimeCondition {
    RuntimeCondition {
        r#type: "NetworkReady".to_owned(),
        status: false,
        reason: "NetworkPluginNotReady".to_owned(),
        message: "pods have a loopback interface only: CNI is not supported yet".to_owned(),
    }
}
