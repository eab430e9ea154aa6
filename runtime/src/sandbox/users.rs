//! A pod's user namespace (`hostUsers: false`, KEP-127), which is one of its guest.
//!
//! The ids that it maps to are the guest's, which no other pod shares: two pods may have the same. They
//! are taken from the kubelet all the same, since its volumes and its log say them.

use isopod_proto::{agent, cri};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::field::FieldError;

/// Least number of ids, which the kubelet never goes below: 65534 is nobody everywhere.
const LENGTH_MIN: u32 = 1 << 16;

/// The ids of a pod that has a user namespace: from 0 on, on the pod's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserNamespace {
    uids: IdRange,
    gids: IdRange,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct IdRange {
    host_id: u32,
    length: u32,
}

impl UserNamespace {
    /// What `options`, found at `field` of a request, ask for; none for a pod whose root is the guest's.
    ///
    /// # Errors
    ///
    /// [`FieldError`] for what is contradictory, or more than one range from 0 on.
    pub(crate) fn check(
        options: Option<&cri::UserNamespace>,
        field: &str,
    ) -> Result<Option<Self>, FieldError> {
        let Some(options) = options else {
            return Ok(None);
        };
        let field = |name: &str| format!("{field}.{name}");
        let lists = [("uids", &options.uids), ("gids", &options.gids)];
        match cri::NamespaceMode::try_from(options.mode) {
            Ok(cri::NamespaceMode::Node) => {
                let with_ids = lists.iter().find(|(_, ids)| !ids.is_empty());
                return match with_ids {
                    None => Ok(None),
                    Some((name, _)) => Err(FieldError::new(
                        field(name),
                        "maps ids, and NODE means that none are",
                    )),
                };
            }
            Ok(cri::NamespaceMode::Container | cri::NamespaceMode::Target) | Err(_) => {
                let reason = "is neither POD nor NODE: a user namespace is the pod's";
                return Err(FieldError::new(field("mode"), reason));
            }
            Ok(cri::NamespaceMode::Pod) => {}
        }
        let [uids, gids] = lists.map(|(name, ids)| {
            IdRange::check(ids).map_err(|reason| FieldError::new(field(name), reason))
        });
        Ok(Some(Self {
            uids: uids?,
            gids: gids?,
        }))
    }

    /// Whether a container may run as user `id`.
    pub(crate) fn has_user(&self, id: u32) -> bool {
        id < self.uids.length
    }

    /// Whether a container may be in group `id`.
    pub(crate) fn has_group(&self, id: u32) -> bool {
        id < self.gids.length
    }

    /// How many users and how many groups it has.
    pub(crate) fn lengths(&self) -> (u32, u32) {
        (self.uids.length, self.gids.length)
    }

    /// Its users and its groups, as the CRI writes them.
    pub(crate) fn mappings(&self) -> [Vec<cri::IdMapping>; 2] {
        [self.uids, self.gids].map(|range| {
            vec![cri::IdMapping {
                host_id: range.host_id,
                container_id: 0,
                length: range.length,
            }]
        })
    }

    /// As the CRI's status shows it.
    pub(crate) fn to_cri(self) -> cri::UserNamespace {
        let [uids, gids] = self.mappings();
        cri::UserNamespace {
            mode: cri::NamespaceMode::Pod.into(),
            uids,
            gids,
        }
    }

    /// Its users and its groups, as the OCI runtime spec writes them.
    pub(crate) fn to_oci(self) -> [Value; 2] {
        [self.uids, self.gids].map(
            |range| json!([{ "containerID": 0, "hostID": range.host_id, "size": range.length }]),
        )
    }

    /// As the agent is told.
    pub(crate) fn to_agent(self) -> agent::UserNamespace {
        let [uids, gids] = [self.uids, self.gids].map(|range| agent::IdRange {
            first: range.host_id,
            length: range.length,
            ..Default::default()
        });
        agent::UserNamespace {
            uids: Some(uids).into(),
            gids: Some(gids).into(),
            ..Default::default()
        }
    }
}

impl IdRange {
    fn check(mappings: &[cri::IdMapping]) -> Result<Self, String> {
        let [mapping] = mappings else {
            let count = mappings.len();
            return Err(format!(
                "has {count} mappings: exactly one, from container id 0 on, is supported"
            ));
        };
        let (host_id, length) = (mapping.host_id, mapping.length);
        if mapping.container_id != 0 {
            return Err("does not map container id 0".to_owned());
        }
        if length < LENGTH_MIN {
            return Err(format!("maps {length} ids, fewer than {LENGTH_MIN}"));
        }
        if host_id == 0 {
            return Err("maps root to root, which is no user namespace to speak of".to_owned());
        }
        // 2^32 - 1 is no id.
        if host_id.checked_add(length).is_none() {
            return Err("leads beyond the last id, 4294967294".to_owned());
        }
        Ok(Self { host_id, length })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(container_id: u32, host_id: u32, length: u32) -> Vec<cri::IdMapping> {
        vec![cri::IdMapping {
            host_id,
            container_id,
            length,
        }]
    }

    fn check(
        mode: cri::NamespaceMode,
        uids: Vec<cri::IdMapping>,
        gids: Vec<cri::IdMapping>,
    ) -> Result<Option<UserNamespace>, String> {
        let options = cri::UserNamespace {
            mode: mode.into(),
            uids,
            gids,
        };
        UserNamespace::check(Some(&options), "users").map_err(|error| error.field)
    }

    #[test]
    fn users_and_groups_may_differ_and_are_told_as_they_were_asked_for() {
        let (uids, gids) = (mapping(0, 65_536, 65_536), mapping(0, 200_000, 100_000));
        let users = check(cri::NamespaceMode::Pod, uids.clone(), gids.clone());
        let users = users.unwrap().unwrap();
        assert!(users.has_user(65_535) && !users.has_user(65_536));
        assert!(users.has_group(99_999) && !users.has_group(100_000));
        assert_eq!(users.to_cri().uids, uids);
        assert_eq!(users.to_cri().gids, gids);
    }

    #[test]
    fn without_a_user_namespace_nothing_is_mapped() {
        assert_eq!(UserNamespace::check(None, "users"), Ok(None));
        let node = cri::NamespaceMode::Node;
        assert_eq!(check(node, Vec::new(), Vec::new()), Ok(None));
        let some = mapping(0, 65_536, 65_536);
        assert_eq!(
            check(node, some.clone(), Vec::new()),
            Err("users.uids".into())
        );
        assert_eq!(check(node, Vec::new(), some), Err("users.gids".into()));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let good = mapping(0, 65_536, 65_536);
        for mode in [cri::NamespaceMode::Container, cri::NamespaceMode::Target] {
            let refused = check(mode, good.clone(), good.clone());
            assert_eq!(refused, Err("users.mode".into()));
        }
        for bad in [
            Vec::new(),
            [good.clone(), mapping(65_536, 200_000, 65_536)].concat(),
            mapping(1, 65_536, 65_536),
            mapping(0, 0, 65_536),
            mapping(0, 1000, 0),
            mapping(0, 1000, 65_535),
            mapping(0, 1, u32::MAX),
            mapping(0, u32::MAX, u32::MAX),
        ] {
            let pod = cri::NamespaceMode::Pod;
            let refused = check(pod, bad.clone(), good.clone());
            assert_eq!(refused, Err("users.uids".into()), "{bad:?}");
            let refused = check(pod, good.clone(), bad.clone());
            assert_eq!(refused, Err("users.gids".into()), "{bad:?}");
        }
    }
}
