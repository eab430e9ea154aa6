//! The PCI function that a block device is behind, and what its configuration space says.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes of configuration space that capabilities lie in (PCI 3.0 section 6.7).
const CONFIG_LEN: u64 = 256;

/// Where the first capability's offset is, and the fields of each.
const CAPABILITIES: usize = 0x34;
const ID: usize = 0;
const NEXT: usize = 1;

/// Most capabilities that fit.
const CAPABILITIES_MAX: usize = 48;

/// A vendor's capability, and of virtio's those with data of the vendor (virtio 1.2 section 4.1.4.8).
const VENDOR: u8 = 0x09;
const LENGTH: usize = 2;
const KIND: usize = 3;
const KIND_VENDOR_DATA: u8 = 9;
const DATA: usize = 6;

/// The folder of the PCI function that `device`, a block device in sysfs, is behind; none for one that
/// is behind no function.
///
/// # Errors
///
/// When `device` is not there.
pub(super) fn behind(device: &Path) -> io::Result<Option<PathBuf>> {
    let device = fs::canonicalize(device)?;
    let found = device
        .ancestors()
        .find(|folder| folder.join("remove").exists() && folder.join("config").exists());
    Ok(found.map(Path::to_owned))
}

/// The vendor data of a virtio function.
pub(super) fn vendor_data(function: &Path) -> Option<Vec<u8>> {
    let mut config = Vec::new();
    File::open(function.join("config"))
        .ok()?
        .take(CONFIG_LEN)
        .read_to_end(&mut config)
        .ok()?;
    vendor_data_in(&config)
}

fn vendor_data_in(config: &[u8]) -> Option<Vec<u8>> {
    let mut at = usize::from(*config.get(CAPABILITIES)?);
    for _ in 0..CAPABILITIES_MAX {
        let capability = config.get(at..).filter(|_| at != 0)?;
        if *capability.get(ID)? == VENDOR && *capability.get(KIND)? == KIND_VENDOR_DATA {
            let end = usize::from(*capability.get(LENGTH)?);
            return Some(capability.get(DATA..end)?.to_vec());
        }
        at = usize::from(*capability.get(NEXT)?);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A configuration space with these capabilities, one behind the other.
    fn config(capabilities: &[&[u8]]) -> Vec<u8> {
        let mut config = vec![0; 256];
        let (mut link, mut at) = (CAPABILITIES, 0x40);
        for capability in capabilities {
            config[link] = u8::try_from(at).unwrap();
            config[at..at + capability.len()].copy_from_slice(capability);
            (link, at) = (at + NEXT, at + capability.len());
        }
        config
    }

    #[test]
    fn vendor_data_is_found_among_other_capabilities() {
        let common = [VENDOR, 0, 16, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let msix = [0x11, 0, 1, KIND_VENDOR_DATA];
        let data = [VENDOR, 0, 9, KIND_VENDOR_DATA, 0xf4, 0x1a, b'a', b'b', b'c'];
        let found = vendor_data_in(&config(&[&msix, &common, &data]));
        assert_eq!(found.as_deref(), Some(&b"abc"[..]));
        assert_eq!(vendor_data_in(&config(&[&msix, &common])), None);
        assert_eq!(vendor_data_in(&[]), None);
    }

    #[test]
    fn capabilities_in_a_ring_or_over_the_end_are_nothing() {
        let mut ring = config(&[&[0x11, 0, 0, 0]]);
        ring[0x40 + NEXT] = 0x40;
        assert_eq!(vendor_data_in(&ring), None);
        let short = [VENDOR, 0, 3, KIND_VENDOR_DATA];
        assert_eq!(vendor_data_in(&config(&[&short])), None);
        let mut long = config(&[&[VENDOR, 0, 255, KIND_VENDOR_DATA]]);
        assert_eq!(vendor_data_in(&long), None);
        long[CAPABILITIES] = 0xff;
        assert_eq!(vendor_data_in(&long), None);
    }

    #[test]
    fn the_function_is_the_nearest_folder_that_can_be_removed() {
        let root = tempfile::tempdir().unwrap();
        let function = root.path().join("0000:00:04.0");
        let device = function.join("virtio3/ndbus0/region0/namespace0.0");
        fs::create_dir_all(&device).unwrap();
        assert_eq!(behind(&device).unwrap(), None);
        for name in ["remove", "config"] {
            fs::write(function.join(name), "").unwrap();
        }
        let found = behind(&device).unwrap().unwrap();
        assert_eq!(found.file_name(), function.file_name());
        assert!(behind(&root.path().join("none")).is_err());
    }
}
