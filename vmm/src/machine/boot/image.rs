//! The agent's image: the guest's root file system, read in place.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::machine::windows::{WindowError, Windows};
use crate::virtio::blk::{DiskError, Extent, Extents};
use crate::virtio::pmem::{Mapping, MappingError, Pmem};

/// What the vendor data of its PCI function says: for people, as the kernel takes the first memory.
const SERIAL: &str = "agent";

/// Where an EROFS superblock is (kernel documentation, "EROFS - Enhanced Read-Only File System").
const SUPERBLOCK_OFFSET: u64 = 1024;
/// How it begins, `EROFS_SUPER_MAGIC_V1`.
const MAGIC: [u8; 4] = 0xe0f5_e1e2_u32.to_le_bytes();

/// Why the image is no root for a guest.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ImageError {
    /// It cannot be read.
    #[error("reading the agent's image")]
    Read(#[source] io::Error),
    /// It is something else.
    #[error("the agent's image is no EROFS file system")]
    Format,
    /// It is no disk, as an empty file is none.
    #[error("the agent's image")]
    Disk(#[from] DiskError),
    /// It cannot be mapped.
    #[error("mapping the agent's image")]
    Map(#[from] MappingError),
    /// The guest cannot be shown it.
    #[error("showing the guest the agent's image")]
    Window(#[from] WindowError),
}

/// The persistent memory that holds `file`, the first one that the guest finds. All guests of a host
/// run the agent from the page cache's one copy; nobody unpacks it, and no guest has it in its RAM.
///
/// # Errors
///
/// [`ImageError`]: the file is no EROFS file system, is not made of whole pages, or the hypervisor
/// refuses.
pub(crate) fn device(file: &File, windows: &Arc<Windows>) -> Result<Pmem, ImageError> {
    let length = file.metadata().map_err(ImageError::Read)?.len();
    let mut magic = [0; MAGIC.len()];
    match file.read_exact_at(&mut magic, SUPERBLOCK_OFFSET) {
        Ok(()) if magic == MAGIC => {}
        Ok(()) => return Err(ImageError::Format),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(ImageError::Format),
        Err(e) => return Err(ImageError::Read(e)),
    }
    let extent = Extent {
        file: file.try_clone().map_err(ImageError::Read)?,
        offset: 0,
        length,
    };
    let extents = Extents::new(vec![extent])?;
    let window = windows.open(Mapping::of(&extents)?)?;
    Ok(Pmem::new(SERIAL.to_owned(), window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::windows::testing::Recorder;
    use crate::virtio::VirtioDevice;

    fn device_of(bytes: &[u8]) -> Result<Pmem, ImageError> {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        device(&file, &Windows::new(Arc::new(Recorder::default())))
    }

    fn image(length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes[1024..1028].copy_from_slice(&MAGIC);
        bytes
    }

    #[test]
    fn an_image_is_shown_to_the_guest_as_memory() {
        let device = device_of(&image(8192)).unwrap();
        assert_eq!(device.name(), "pmem");
        assert_eq!(device.vendor_data(), SERIAL.as_bytes());
    }

    #[test]
    fn what_is_no_image_returns_error() {
        for bytes in [&b""[..], b"070701", &[0; 8192], &image(2048)[..1026]] {
            assert!(matches!(device_of(bytes), Err(ImageError::Format)));
        }
    }

    #[test]
    fn an_image_that_is_cut_within_a_page_returns_error() {
        let cut = device_of(&image(5120));
        assert!(matches!(
            cut,
            Err(ImageError::Map(MappingError::Pages { .. }))
        ));
    }
}
