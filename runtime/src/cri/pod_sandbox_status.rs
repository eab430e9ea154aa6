//! `PodSandboxStatus`: everything about one pod.

use std::collections::HashMap;

use isopod_proto::cri;
use isopod_proto::cri::{PodSandboxStatusRequest, PodSandboxStatusResponse};
use serde_json::{Value, json};

use super::error::CriError;
use super::{Cri, container_status};
use crate::clock;
use crate::sandbox::{Sandbox, SandboxError, SandboxState, UserNamespace};

pub(super) async fn pod_sandbox_status(
    cri: &Cri,
    request: PodSandboxStatusRequest,
) -> Result<PodSandboxStatusResponse, CriError> {
    let sandbox = cri.sandboxes.find(&request.pod_sandbox_id)?;
    let info = match request.verbose {
        true => HashMap::from([("info".to_owned(), info(cri, &sandbox).await.to_string())]),
        false => HashMap::new(),
    };
    let containers = cri.containers.of_sandbox(&sandbox.id);
    Ok(PodSandboxStatusResponse {
        status: Some(status(&sandbox)),
        info,
        containers_statuses: containers
            .iter()
            .map(|one| container_status::status(one))
            .collect(),
        timestamp: clock::now_ns(),
    })
}

pub(super) fn metadata(sandbox: &Sandbox) -> cri::PodSandboxMetadata {
    let pod = &sandbox.config;
    cri::PodSandboxMetadata {
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        attempt: pod.attempt,
    }
}

pub(super) fn state(sandbox: &Sandbox) -> cri::PodSandboxState {
    match sandbox.state() {
        SandboxState::Ready => cri::PodSandboxState::SandboxReady,
        SandboxState::NotReady { .. } => cri::PodSandboxState::SandboxNotready,
    }
}

pub(super) fn status(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    let pod = &sandbox.config;
    let pid = if pod.shares_pids {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(metadata(sandbox)),
        state: state(sandbox).into(),
        created_at: sandbox.created_at_ns,
        network: Some(network(sandbox)),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace {
                options: Some(cri::NamespaceOption {
                    pid: pid.into(),
                    userns_options: pod.user_namespace.map(UserNamespace::to_cri),
                    ..Default::default()
                }),
            }),
        }),
        labels: pod.labels.clone().into_iter().collect(),
        annotations: pod.annotations.clone().into_iter().collect(),
        runtime_handler: sandbox.handler.clone(),
    }
}

/// No address when the pod has a loopback interface only, or has left its network.
fn network(sandbox: &Sandbox) -> cri::PodSandboxNetworkStatus {
    let network = sandbox.network();
    let mut ips = network.into_iter().flat_map(|network| network.ips);
    cri::PodSandboxNetworkStatus {
        ip: ips.next().map(|ip| ip.to_string()).unwrap_or_default(),
        additional_ips: ips.map(|ip| cri::PodIp { ip: ip.to_string() }).collect(),
    }
}

/// Under containerd's names where it has one.
async fn info(cri: &Cri, sandbox: &Sandbox) -> Value {
    let ready = sandbox.state() == SandboxState::Ready;
    let ended = match sandbox.state() {
        SandboxState::Ready => None,
        SandboxState::NotReady { end } => end,
    };
    json!({
        "pid": sandbox.vm().map(|vm| vm.process_id().pid),
        "processStatus": if ready { "running" } else { "stopped" },
        "runtimeType": container_status::RUNTIME_TYPE,
        "runtimeHandler": sandbox.handler,
        "netNamespaceClosed": sandbox.network().is_none(),
        "network": sandbox.network(),
        "cniResult": container_status::unless_unavailable(cri.networks.result(&sandbox.id).await),
        "stateDir": cri.sandboxes.state_dir(&sandbox.id),
        "machine": machine(sandbox).await,
        "ended": ended,
        "config": sandbox.config,
    })
}

/// What the VMM says.
async fn machine(sandbox: &Sandbox) -> Value {
    let status = async { Ok::<_, SandboxError>(sandbox.running_vm()?.status().await?) };
    container_status::unless_unavailable(status.await.map(|status| {
        json!({
            "vmmVersion": status.vmm_version,
            "vcpus": status.vcpus,
            "memoryMiB": status.memory_mib,
            "askedMemoryMiB": status.asked_memory_mib,
            "pluggedMemoryMiB": status.plugged_memory_mib,
            "disks": status.disks,
            "nics": status.nics,
            "vsockConnections": status.vsock_connections,
        })
    }))
}
