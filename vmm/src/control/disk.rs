//! From a `Disk` message to a disk.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use isopod_proto::vmm;

use super::ControlError;
use crate::descriptors::Descriptors;
use crate::machine::windows::Windows;
use crate::virtio::VirtioDevice;
use crate::virtio::blk::{Disk, DiskOptions, Extent, Extents};
use crate::virtio::pmem::{Mapping, Pmem};

/// Longest serial number (virtio 1.2 section 5.2.6.1), in bytes.
const SERIAL_MAX: usize = 20;
/// Most extents of a disk: an image has as many as layers, and one for its metadata.
const EXTENTS_MAX: usize = 256;

/// Makes the disk that `request` describes, in one of the `windows` if it is to be memory; the
/// descriptors that it names are taken, also when it fails. Returns its serial number with it.
pub(super) fn make(
    descriptors: &Descriptors,
    request: vmm::Disk,
    windows: Option<&Arc<Windows>>,
) -> Result<(String, Box<dyn VirtioDevice>), ControlError> {
    let pmem = request.pmem;
    let options = options(descriptors, request)?;
    let serial = options.serial.clone();
    let device: Box<dyn VirtioDevice> = match (pmem, windows) {
        (false, _) => Box::new(Disk::new(options)?),
        (true, Some(windows)) if options.read_only => {
            let mapping = Mapping::of(&Extents::new(options.extents)?)?;
            Box::new(Pmem::new(options.serial, windows.open(mapping)?))
        }
        (true, _) => return Err(ControlError::Pmem(serial)),
    };
    Ok((serial, device))
}

/// What the disk is made of. Extents may share a descriptor.
fn options(descriptors: &Descriptors, request: vmm::Disk) -> Result<DiskOptions, ControlError> {
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
    Ok(DiskOptions {
        serial: request.serial,
        read_only: request.read_only,
        extents,
    })
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
    use crate::machine::windows::testing;

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
        let (serial, _) = make(&table, request("image-1", 2), None).unwrap();
        assert_eq!(serial, "image-1");
        assert!(table.take("file").is_err());
    }

    #[test]
    fn a_serial_that_the_guest_could_not_find_returns_error() {
        for serial in ["", "123456789012345678901", "a/b", "a b", "\u{e9}"] {
            assert!(matches!(
                make(&descriptors(), request(serial, 1), None),
                Err(ControlError::Serial)
            ));
        }
    }

    #[test]
    fn a_disk_without_extents_or_with_too_many_returns_error() {
        for extents in [0, EXTENTS_MAX + 1] {
            assert!(matches!(
                make(&descriptors(), request("a", extents), None),
                Err(ControlError::Extents(_))
            ));
        }
    }

    #[test]
    fn memory_is_read_only_and_of_a_machine_that_runs() {
        let windows = Windows::new(Arc::new(testing::Recorder::default()));
        let wanted = |read_only| {
            let mut request = request("image", 2);
            (request.pmem, request.read_only) = (true, read_only);
            request
        };
        let (_, device) = make(&descriptors(), wanted(true), Some(&windows)).unwrap();
        assert_eq!(device.name(), "pmem");
        for (read_only, windows) in [(false, Some(&windows)), (true, None)] {
            let refused = make(&descriptors(), wanted(read_only), windows);
            assert!(matches!(refused, Err(ControlError::Pmem(_))));
        }
    }
}
