//! From a `Disk` message to a disk.

use std::collections::HashMap;
use std::fs::File;

use isopod_proto::vmm;

use super::ControlError;
use crate::descriptors::Descriptors;
use crate::virtio::VirtioDevice;
use crate::virtio::blk::{Disk, DiskOptions, Extent};

/// Longest serial number (virtio 1.2 section 5.2.6.1), in bytes.
const SERIAL_MAX: usize = 20;
/// Most extents of a disk: an image has as many as layers, and one for its metadata.
const EXTENTS_MAX: usize = 256;

/// Makes the disk that `request` describes; the descriptors that it names are taken, also when it
/// fails. Extents may share one. Returns its serial number with it.
pub(super) fn make(
    descriptors: &Descriptors,
    request: vmm::Disk,
) -> Result<(String, Box<dyn VirtioDevice>), ControlError> {
    if !is_serial(&request.serial) {
        return Err(ControlError::Serial);
    }
    if !(1..=EXTENTS_MAX).contains(&request.extents.len()) {
        return Err(ControlError::Extents(request.serial));
    }
    let mut files: HashMap<String, File> = HashMap::new();
    let mut extents = Vec::with_capacity(request.extents.len());
    for extent in request.extents {
        let file = match files.get(&extent.descriptor) {
            Some(file) => file.try_clone().map_err(ControlError::Duplicate)?,
            None => {
                let file = File::from(descriptors.take(&extent.descriptor)?);
                let copy = file.try_clone().map_err(ControlError::Duplicate)?;
                files.insert(extent.descriptor, copy);
                file
            }
        };
        extents.push(Extent {
            file,
            offset: extent.offset,
            length: extent.length,
        });
    }
    let disk = Disk::new(DiskOptions {
        serial: request.serial.clone(),
        read_only: request.read_only,
        extents,
    })?;
    Ok((request.serial, Box::new(disk)))
}

fn is_serial(serial: &str) -> bool {
    (1..=SERIAL_MAX).contains(&serial.len())
        && serial
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(serial: &str, extents: usize) -> vmm::Disk {
        let mut request = vmm::Disk::new();
        serial.clone_into(&mut request.serial);
        request.read_only = true;
        for _ in 0..extents {
            let mut extent = vmm::Extent::new();
            "file".clone_into(&mut extent.descriptor);
            extent.length = 4096;
            request.extents.push(extent);
        }
        request
    }

    fn descriptors() -> Descriptors {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let table = Descriptors::default();
        table.put("file", file.into()).unwrap();
        table
    }

    #[test]
    fn extents_may_share_a_descriptor_which_is_taken_once() {
        let table = descriptors();
        let (serial, _) = make(&table, request("image-1", 2)).unwrap();
        assert_eq!(serial, "image-1");
        assert!(table.take("file").is_err());
    }

    #[test]
    fn a_serial_that_the_guest_could_not_find_returns_error() {
        for serial in ["", "123456789012345678901", "a/b", "a b", "\u{e9}"] {
            assert!(matches!(
                make(&descriptors(), request(serial, 1)),
                Err(ControlError::Serial)
            ));
        }
    }

    #[test]
    fn a_disk_without_extents_or_with_too_many_returns_error() {
        for extents in [0, EXTENTS_MAX + 1] {
            assert!(matches!(
                make(&descriptors(), request("a", extents)),
                Err(ControlError::Extents(_))
            ));
        }
    }
}
