//! The range of addresses that the cluster gave the node (`UpdateRuntimeConfig`), for networks whose
//! plugins take the capability `ipRanges`. The kubelet tells it once, so it outlives the daemon.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::{NetworkError, blocking};
use crate::field::FieldError;
use crate::record;

/// Its file below `root_dir`.
const FILE: &str = "pod-cidr.json";
/// Most ranges: one for each IP version, and room.
const RANGES_MAX: usize = 8;

/// The ranges.
#[derive(Debug)]
pub(super) struct PodCidr {
    path: PathBuf,
    ranges: Mutex<Vec<String>>,
}

impl PodCidr {
    /// What was told last, to this daemon or an earlier one. Blocking.
    ///
    /// # Errors
    ///
    /// When the file cannot be read.
    pub(super) fn open(root_dir: &Path) -> Result<Self, NetworkError> {
        let path = root_dir.join(FILE);
        let ranges = record::read::<Vec<String>>(&path)?;
        Ok(Self {
            path,
            ranges: Mutex::new(ranges.unwrap_or_default()),
        })
    }

    /// Takes one range, or several separated by commas; none are forgotten.
    ///
    /// # Errors
    ///
    /// When one is none, or the file cannot be written.
    pub(super) async fn set(&self, text: &str) -> Result<(), NetworkError> {
        let field = "runtime_config.network_config.pod_cidr";
        let ranges: Vec<String> = text
            .split(',')
            .filter(|range| !range.is_empty())
            .map(str::to_owned)
            .collect();
        if ranges.len() > RANGES_MAX || !ranges.iter().all(|range| is_range(range)) {
            let reason = "is not a list of ranges such as 10.1.0.0/16";
            return Err(FieldError::new(field, reason).into());
        }
        let (path, recorded) = (self.path.clone(), ranges.clone());
        blocking(move || {
            let recorded = match recorded.is_empty() {
                true => record::forget(&path),
                false => record::write(&path, &recorded),
            };
            recorded.map_err(NetworkError::from)
        })
        .await?;
        *self.ranges.lock().unwrap_or_else(PoisonError::into_inner) = ranges;
        Ok(())
    }

    /// The capability's argument: a set of ranges for each IP version.
    pub(super) fn ip_ranges(&self) -> Option<Value> {
        let ranges = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let sets: Vec<_> = ranges
            .iter()
            .map(|range| json!([{ "subnet": range }]))
            .collect();
        (!sets.is_empty()).then_some(Value::Array(sets))
    }
}

fn is_range(text: &str) -> bool {
    let Some((ip, length)) = text.split_once('/') else {
        return false;
    };
    match (ip.parse::<IpAddr>(), length.parse::<u8>()) {
        (Ok(ip), Ok(length)) => length <= if ip.is_ipv4() { 32 } else { 128 },
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ranges_are_known_to_the_next_daemon() {
        let root = tempfile::tempdir().unwrap();
        let cidr = PodCidr::open(root.path()).unwrap();
        assert_eq!(cidr.ip_ranges(), None);
        cidr.set("10.1.0.0/16,fd00::/64").await.unwrap();
        let expected = json!([[{ "subnet": "10.1.0.0/16" }], [{ "subnet": "fd00::/64" }]]);
        let next = PodCidr::open(root.path()).unwrap();
        assert_eq!(next.ip_ranges(), Some(expected));
        next.set("").await.unwrap();
        assert_eq!(PodCidr::open(root.path()).unwrap().ip_ranges(), None);
    }

    #[tokio::test]
    async fn what_is_no_range_is_refused_and_changes_nothing() {
        let root = tempfile::tempdir().unwrap();
        let cidr = PodCidr::open(root.path()).unwrap();
        cidr.set("10.1.0.0/16").await.unwrap();
        for bad in [
            "10.1.0.0",
            "10.1.0.0/33",
            "::/129",
            "x/8",
            "10.0.0.0/8 ",
            "a,b",
        ] {
            assert!(cidr.set(bad).await.is_err(), "{bad:?}");
        }
        assert!(cidr.ip_ranges().is_some());
    }
}
