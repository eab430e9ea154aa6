//! `Version`: who answers.

use isopod_proto::cri::{VersionRequest, VersionResponse};

/// The kubelet's API version, in its own words.
const KUBELET_API: &str = "0.1.0";
/// The CRI's version.
const CRI_API: &str = "v1";

pub(super) fn version(_request: &VersionRequest) -> VersionResponse {
    VersionResponse {
        version: KUBELET_API.to_owned(),
        runtime_name: "isopod".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: CRI_API.to_owned(),
    }
}
