//! `PortForward`: answers with a URL at which one client gets connections to a pod's ports.

use isopod_proto::cri::{PortForwardRequest, PortForwardResponse};

use super::Cri;
use super::error::CriError;
use crate::streaming::{OpenError, Ports};

pub(super) fn port_forward(
    cri: &Cri,
    request: &PortForwardRequest,
) -> Result<PortForwardResponse, CriError> {
    let sandbox = cri.sandboxes.find(&request.pod_sandbox_id)?;
    sandbox.running_vm()?;
    // The ports of the request are for protocols that cannot name them later.
    let ports = Ports::new(move |port| {
        let sandbox = sandbox.clone();
        async move {
            let vm = sandbox.running_vm()?;
            vm.connect_port(port).await.map_err(OpenError::from)
        }
    });
    let url = cri.streaming.port_forward_url(ports)?;
    Ok(PortForwardResponse { url })
}
