//! What must survive the daemon, on disk: one JSON file per sandbox and per container.
//!
//! ```text
//! <root_dir>/sandboxes/<sandbox id>/sandbox.json
//!                                   network.json
//!                                   scratch.img
//!                                   containers/<container id>.json
//!                                   specs/<container id>.json
//! ```
//!
//! A file is written beside its place, flushed, and renamed over it, and then the folder is
//! flushed: after a crash it holds the old record or the new one, never half of either. A sandbox's
//! folder goes away `sandbox.json` last, so that a removal that was cut short is found again. A spec
//! is for people to look at, and is not flushed: what ends the host ends the container.
//!
//! The rooms that own the records (`sandbox`, `container`) call this from their tasks; the work is
//! done on the blocking pool.

mod file;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub(crate) use self::file::RecordError;
use crate::id::{ContainerId, SandboxId};

/// Name of a sandbox's record.
const SANDBOX_FILE: &str = "sandbox.json";
/// Folder of a sandbox's container records.
const CONTAINERS_DIR: &str = "containers";
/// Folder of its containers' OCI specs.
const SPECS_DIR: &str = "specs";
/// Name of what is recorded of a sandbox's network.
const NETWORK_FILE: &str = "network.json";
/// Name of a sandbox's writable disk.
const SCRATCH_FILE: &str = "scratch.img";

/// The folder of records.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    root: PathBuf,
}

/// A sandbox's folder as it was found.
#[derive(Debug)]
pub(crate) struct Found<T> {
    /// The folder's name.
    pub(crate) id: SandboxId,
    /// Its record; `None` when the folder has none and is left over.
    pub(crate) record: Result<Option<T>, RecordError>,
}

impl Records {
    /// Opens the folder under `root_dir`, and makes it when it is missing. Blocking.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub(crate) fn open(root_dir: &Path) -> Result<Self, RecordError> {
        let root = root_dir.join("sandboxes");
        file::create_private_dir(&root)?;
        Ok(Self { root })
    }

    /// A sandbox's folder.
    pub(crate) fn sandbox_dir(&self, id: &SandboxId) -> PathBuf {
        self.root.join(id.as_str())
    }

    /// Where a sandbox's writable disk is.
    pub(crate) fn scratch(&self, id: &SandboxId) -> PathBuf {
        self.sandbox_dir(id).join(SCRATCH_FILE)
    }

    fn container_file(&self, sandbox: &SandboxId, id: &ContainerId) -> PathBuf {
        self.sandbox_dir(sandbox)
            .join(CONTAINERS_DIR)
            .join(format!("{id}.json"))
    }

    fn spec_file(&self, sandbox: &SandboxId, id: &ContainerId) -> PathBuf {
        self.sandbox_dir(sandbox)
            .join(SPECS_DIR)
            .join(format!("{id}.json"))
    }

    /// Writes a sandbox's record, and makes its folder when it is new. Durable when it returns.
    ///
    /// # Errors
    ///
    /// When the record cannot be written; the old one is then still there.
    pub(crate) async fn save_sandbox<T: Serialize>(
        &self,
        id: &SandboxId,
        record: &T,
    ) -> Result<(), RecordError> {
        let dir = self.sandbox_dir(id);
        let path = dir.join(SANDBOX_FILE);
        let bytes = file::encode(&path, record)?;
        on_blocking_pool(move || {
            file::create_private_dir(&dir.join(CONTAINERS_DIR))?;
            file::replace(&path, &bytes)
        })
        .await
    }

    /// Writes a container's record. Durable when it returns.
    ///
    /// # Errors
    ///
    /// When the record cannot be written; the old one is then still there.
    pub(crate) async fn save_container<T: Serialize>(
        &self,
        sandbox: &SandboxId,
        id: &ContainerId,
        record: &T,
    ) -> Result<(), RecordError> {
        let path = self.container_file(sandbox, id);
        let bytes = file::encode(&path, record)?;
        on_blocking_pool(move || file::replace(&path, &bytes)).await
    }

    /// Keeps a container's OCI spec for its verbose status.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub(crate) async fn save_spec(
        &self,
        sandbox: &SandboxId,
        id: &ContainerId,
        spec: Vec<u8>,
    ) -> Result<(), RecordError> {
        let folder = self.sandbox_dir(sandbox).join(SPECS_DIR);
        let path = self.spec_file(sandbox, id);
        on_blocking_pool(move || {
            // A sandbox of an older daemon has none.
            file::create_private_dir(&folder)?;
            file::write(&path, &spec)
        })
        .await
    }

    /// A container's OCI spec.
    ///
    /// # Errors
    ///
    /// When it is not there, or is not what was written.
    pub(crate) async fn spec(
        &self,
        sandbox: &SandboxId,
        id: &ContainerId,
    ) -> Result<serde_json::Value, RecordError> {
        let path = self.spec_file(sandbox, id);
        on_blocking_pool(move || file::read_plain(&path)).await
    }

    /// Removes a container's spec and record. Idempotent.
    ///
    /// # Errors
    ///
    /// When a file cannot be removed; the record is then still there.
    pub(crate) async fn forget_container(
        &self,
        sandbox: &SandboxId,
        id: &ContainerId,
    ) -> Result<(), RecordError> {
        let files = [
            self.spec_file(sandbox, id),
            self.container_file(sandbox, id),
        ];
        on_blocking_pool(move || files.iter().try_for_each(|path| file::remove(path))).await
    }

    /// Writes what must be known of a sandbox's network to take it out of it. Durable when it returns.
    ///
    /// # Errors
    ///
    /// When the record cannot be written; the old one is then still there.
    pub(crate) async fn save_network<T: Serialize>(
        &self,
        id: &SandboxId,
        record: &T,
    ) -> Result<(), RecordError> {
        let path = self.sandbox_dir(id).join(NETWORK_FILE);
        let bytes = file::encode(&path, record)?;
        on_blocking_pool(move || file::replace(&path, &bytes)).await
    }

    /// What is recorded of a sandbox's network, if it is in one.
    ///
    /// # Errors
    ///
    /// When the record cannot be read.
    pub(crate) async fn network<T: DeserializeOwned + Send + 'static>(
        &self,
        id: &SandboxId,
    ) -> Result<Option<T>, RecordError> {
        let path = self.sandbox_dir(id).join(NETWORK_FILE);
        on_blocking_pool(move || file::read(&path)).await
    }

    /// What is recorded of every sandbox's network.
    ///
    /// # Errors
    ///
    /// When the folder cannot be listed or a record cannot be read.
    pub(crate) async fn networks<T: DeserializeOwned + Send + 'static>(
        &self,
    ) -> Result<Vec<T>, RecordError> {
        let root = self.root.clone();
        on_blocking_pool(move || {
            let mut records = Vec::new();
            for name in file::names(&root)? {
                records.extend(file::read(&root.join(name).join(NETWORK_FILE))?);
            }
            Ok(records)
        })
        .await
    }

    /// Removes the record of a sandbox's network. Idempotent.
    ///
    /// # Errors
    ///
    /// When the file cannot be removed.
    pub(crate) async fn forget_network(&self, id: &SandboxId) -> Result<(), RecordError> {
        let path = self.sandbox_dir(id).join(NETWORK_FILE);
        on_blocking_pool(move || file::remove(&path)).await
    }

    /// Removes a sandbox's writable disk. Idempotent.
    ///
    /// # Errors
    ///
    /// When the file cannot be removed.
    pub(crate) async fn remove_scratch(&self, id: &SandboxId) -> Result<(), RecordError> {
        let path = self.scratch(id);
        on_blocking_pool(move || file::remove(&path)).await
    }

    /// Removes a sandbox's folder, its record last. Idempotent.
    ///
    /// # Errors
    ///
    /// When something in it cannot be removed; the record is then still there.
    pub(crate) async fn forget_sandbox(&self, id: &SandboxId) -> Result<(), RecordError> {
        let dir = self.sandbox_dir(id);
        on_blocking_pool(move || file::remove_dir_keeping_last(&dir, SANDBOX_FILE)).await
    }

    /// Every sandbox's record. What is in the folder and is no sandbox's is left alone. Blocking.
    ///
    /// # Errors
    ///
    /// When the folder cannot be listed.
    pub(crate) fn sandboxes<T: DeserializeOwned>(&self) -> Result<Vec<Found<T>>, RecordError> {
        let mut found = Vec::new();
        for name in file::names(&self.root)? {
            let Ok(id) = name.parse::<SandboxId>() else {
                continue;
            };
            let record = file::read(&self.sandbox_dir(&id).join(SANDBOX_FILE));
            found.push(Found { id, record });
        }
        Ok(found)
    }

    /// Every record of a sandbox's containers. A half-written file that never became a record is
    /// removed. Blocking.
    ///
    /// # Errors
    ///
    /// When the folder cannot be listed or a record cannot be read.
    pub(crate) fn containers<T: DeserializeOwned>(
        &self,
        sandbox: &SandboxId,
    ) -> Result<Vec<T>, RecordError> {
        let dir = self.sandbox_dir(sandbox).join(CONTAINERS_DIR);
        let mut records = Vec::new();
        for name in file::names(&dir)? {
            let path = dir.join(&name);
            match name.strip_suffix(".json") {
                Some(id) if id.parse::<ContainerId>().is_ok() => {
                    records.extend(file::read(&path)?);
                }
                _ => file::remove(&path)?,
            }
        }
        Ok(records)
    }
}

/// Reads a record outside the folder; `None` when there is none. Blocking.
///
/// # Errors
///
/// When it cannot be read.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, RecordError> {
    file::read(path)
}

/// Writes a record outside the folder. Durable when it returns. Blocking.
///
/// # Errors
///
/// When it cannot be written; the old one is then still there.
pub(crate) fn write<T: Serialize>(path: &Path, record: &T) -> Result<(), RecordError> {
    file::replace(path, &file::encode(path, record)?)
}

/// Removes a record outside the folder. Idempotent. Blocking.
///
/// # Errors
///
/// When it cannot be removed.
pub(crate) fn forget(path: &Path) -> Result<(), RecordError> {
    file::remove(path)
}

async fn on_blocking_pool<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RecordError> + Send + 'static,
) -> Result<T, RecordError> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|_error| Err(RecordError::Interrupted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids() -> (SandboxId, ContainerId) {
        (
            "a".repeat(64).parse().unwrap(),
            "b".repeat(64).parse().unwrap(),
        )
    }

    #[tokio::test]
    async fn saved_records_are_found_by_the_next_daemon() {
        let root = tempfile::tempdir().unwrap();
        let (sandbox, container) = ids();
        let records = Records::open(root.path()).unwrap();
        records.save_sandbox(&sandbox, &"first").await.unwrap();
        records.save_sandbox(&sandbox, &"second").await.unwrap();
        records
            .save_container(&sandbox, &container, &7)
            .await
            .unwrap();

        let records = Records::open(root.path()).unwrap();
        let found = records.sandboxes::<String>().unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].id, sandbox);
        assert_eq!(found[0].record.as_ref().unwrap().as_deref(), Some("second"));
        assert_eq!(records.containers::<i32>(&sandbox).unwrap(), [7]);
    }

    #[tokio::test]
    async fn forgetting_twice_is_ok_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (sandbox, container) = ids();
        let records = Records::open(root.path()).unwrap();
        records.save_sandbox(&sandbox, &1).await.unwrap();
        records
            .save_container(&sandbox, &container, &1)
            .await
            .unwrap();
        let spec = br#"{"ociVersion":"1.2.0"}"#.to_vec();
        records.save_spec(&sandbox, &container, spec).await.unwrap();
        let spec = records.spec(&sandbox, &container).await.unwrap();
        assert_eq!(spec["ociVersion"], "1.2.0");
        std::fs::write(records.scratch(&sandbox), b"disk").unwrap();
        for _ in 0..2 {
            records
                .forget_container(&sandbox, &container)
                .await
                .unwrap();
            assert!(records.spec(&sandbox, &container).await.is_err());
            records.remove_scratch(&sandbox).await.unwrap();
            records.forget_sandbox(&sandbox).await.unwrap();
        }
        assert_eq!(
            std::fs::read_dir(root.path().join("sandboxes"))
                .unwrap()
                .count(),
            0
        );
    }

    #[tokio::test]
    async fn folder_without_a_record_is_reported_as_left_over() {
        let root = tempfile::tempdir().unwrap();
        let (sandbox, _) = ids();
        let records = Records::open(root.path()).unwrap();
        std::fs::create_dir(records.sandbox_dir(&sandbox)).unwrap();
        let found = records.sandboxes::<String>().unwrap();
        assert!(matches!(found[0].record, Ok(None)));
    }

    #[tokio::test]
    async fn record_of_a_newer_version_is_an_error_and_stays() {
        let root = tempfile::tempdir().unwrap();
        let (sandbox, _) = ids();
        let records = Records::open(root.path()).unwrap();
        records.save_sandbox(&sandbox, &1).await.unwrap();
        let path = records.sandbox_dir(&sandbox).join(SANDBOX_FILE);
        std::fs::write(&path, br#"{"version":2,"record":1}"#).unwrap();
        let found = records.sandboxes::<i32>().unwrap();
        assert!(matches!(
            found[0].record,
            Err(RecordError::Version { version: 2, .. })
        ));
        assert!(path.exists());
    }
}
