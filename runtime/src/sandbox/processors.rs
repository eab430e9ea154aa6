//! The host's processors and memory nodes that a sandbox may use: what its containers ask for by
//! `cpuset_cpus` and `cpuset_mems`.
//!
//! The numbers are the host's, and a guest has processors of its own. So the sets of all containers
//! together confine the VMM: its vCPUs are what runs them. A container without a set may use all,
//! and so may then its pod.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::SandboxError;
use crate::cgroup::{CgroupError, Cgroups};
use crate::field::FieldError;
use crate::id::SandboxId;

/// What one container asks for; an empty list stands for all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ProcessorSet {
    /// Processors of the host.
    pub(crate) cpus: String,
    /// Memory nodes of the host.
    pub(crate) mems: String,
}

/// Who asks for which.
#[derive(Debug)]
pub(crate) struct Processors {
    cgroups: Arc<Cgroups>,
    parent: String,
    id: SandboxId,
    by_user: tokio::sync::Mutex<BTreeMap<String, ProcessorSet>>,
}

impl Processors {
    /// Those of a sandbox.
    pub(super) fn new(cgroups: Arc<Cgroups>, parent: String, id: SandboxId) -> Self {
        Self {
            cgroups,
            parent,
            id,
            by_user: tokio::sync::Mutex::default(),
        }
    }

    /// Notes what `user` asks for; the sandbox is confined to what all ask for.
    ///
    /// # Errors
    ///
    /// When the host has no such processors or memory nodes; then nothing has changed.
    pub(crate) async fn set(&self, user: &str, set: ProcessorSet) -> Result<(), SandboxError> {
        let mut by_user = self.by_user.lock().await;
        let before = union(&by_user);
        let old = by_user.insert(user.to_owned(), set);
        let after = union(&by_user);
        let confined = self.confine(&before, &after).await;
        if confined.is_err() {
            // Of the two lists one may have been taken.
            if let Err(error) = self.confine(&after, &before).await {
                let error = crate::chain::chain(&error);
                tracing::warn!(sandbox_id = %self.id, error, "the sandbox's processors have changed");
            }
            match old {
                Some(old) => by_user.insert(user.to_owned(), old),
                None => by_user.remove(user),
            };
        }
        confined
    }

    /// Notes what a container of an earlier daemon asked for.
    pub(crate) async fn adopt(&self, user: &str, set: ProcessorSet) {
        self.by_user.lock().await.insert(user.to_owned(), set);
    }

    /// Forgets what `user` asked for. Idempotent.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub(crate) async fn forget(&self, user: &str) -> Result<(), SandboxError> {
        let mut by_user = self.by_user.lock().await;
        let before = union(&by_user);
        by_user.remove(user);
        self.confine(&before, &union(&by_user)).await
    }

    async fn confine(&self, before: &ProcessorSet, to: &ProcessorSet) -> Result<(), SandboxError> {
        if before == to {
            return Ok(());
        }
        let (cgroups, to) = (Arc::clone(&self.cgroups), to.clone());
        let (parent, id) = (self.parent.clone(), self.id.clone());
        let confined =
            tokio::task::spawn_blocking(move || cgroups.confine(&parent, &id, &to.cpus, &to.mems));
        let confined = confined
            .await
            .map_err(|error| SandboxError::io("confining", "a cgroup")(io::Error::other(error)))?;
        confined.map_err(|error| match &error {
            CgroupError::Io { path, source, .. }
                if matches!(
                    source.raw_os_error(),
                    Some(libc::EINVAL | libc::ERANGE | libc::EOVERFLOW | libc::ENODEV)
                ) =>
            {
                let mems = path.extension().is_some_and(|name| name == "mems");
                let name = if mems { "cpuset_mems" } else { "cpuset_cpus" };
                let field = format!("config.linux.resources.{name}");
                FieldError::new(field, "names what the host does not have").into()
            }
            _ => error.into(),
        })
    }
}

/// What all ask for together.
fn union(by_user: &BTreeMap<String, ProcessorSet>) -> ProcessorSet {
    let join = |list: fn(&ProcessorSet) -> &str| {
        let lists: Vec<&str> = by_user.values().map(list).collect();
        if lists.contains(&"") {
            return String::new();
        }
        lists.join(",")
    };
    ProcessorSet {
        cpus: join(|set| &set.cpus),
        mems: join(|set| &set.mems),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_may_use_what_its_containers_ask_for_or_all() {
        let set = |cpus: &str, mems: &str| ProcessorSet {
            cpus: cpus.into(),
            mems: mems.into(),
        };
        let of = |sets: &[ProcessorSet]| {
            let named = sets.iter().enumerate();
            union(
                &named
                    .map(|(number, set)| (number.to_string(), set.clone()))
                    .collect(),
            )
        };
        assert_eq!(of(&[]), set("", ""));
        assert_eq!(of(&[set("0-1", "0"), set("3", "")]), set("0-1,3", ""));
        assert_eq!(of(&[set("0-1", "0"), set("", "")]), set("", ""));
    }
}
