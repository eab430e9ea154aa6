//! `ImageFsInfo`: what the image store takes of its filesystem.
//!
//! The kubelet takes an absent `container_filesystems` for an error, so the one filesystem is both,
//! as with containerd; containers' writable layers are disks of their own and not counted in it.

use std::time::{SystemTime, UNIX_EPOCH};

use isopod_proto::cri::{FilesystemIdentifier, FilesystemUsage, ImageFsInfoResponse, UInt64Value};
use tonic::Status;

use super::ImageApi;

impl ImageApi {
    pub(super) async fn fs_info(&self) -> Result<ImageFsInfoResponse, Status> {
        let store = self.store.clone();
        let usage = tokio::task::spawn_blocking(move || store.usage())
            .await
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let filesystem = FilesystemUsage {
            timestamp: i64::try_from(now.as_nanos()).unwrap_or(i64::MAX),
            fs_id: Some(FilesystemIdentifier {
                mountpoint: self.store.root().to_string_lossy().into_owned(),
            }),
            used_bytes: Some(UInt64Value { value: usage.bytes }),
            inodes_used: Some(UInt64Value {
                value: usage.inodes,
            }),
        };
        Ok(ImageFsInfoResponse {
            image_filesystems: vec![filesystem.clone()],
            container_filesystems: vec![filesystem],
        })
    }
}
