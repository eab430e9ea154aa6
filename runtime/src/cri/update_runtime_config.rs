//! `UpdateRuntimeConfig`: the cluster's range of addresses for this node, for networks that ask for it.

use isopod_proto::cri::{UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse};

use super::Cri;
use super::error::CriError;

pub(super) async fn update_runtime_config(
    cri: &Cri,
    request: UpdateRuntimeConfigRequest,
) -> Result<UpdateRuntimeConfigResponse, CriError> {
    let network = request.runtime_config.unwrap_or_default().network_config;
    if let Some(network) = network {
        cri.networks.set_pod_cidr(&network.pod_cidr).await?;
    }
    Ok(UpdateRuntimeConfigResponse {})
}
