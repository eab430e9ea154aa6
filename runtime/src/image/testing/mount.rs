//! An image's disk, put together as the VMM would and mounted by the host's kernel.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::image::ImageDisk;

/// A mounted disk. Dropping it unmounts.
#[derive(Debug)]
pub(in crate::image) struct Mounted {
    directory: TempDir,
}

impl Mounted {
    /// Copies the extents into one file, as nothing here can compose them, and mounts that.
    pub(in crate::image) fn new(disk: &ImageDisk) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let path = directory.path().join("disk");
        compose(disk, &path);
        let mounted = Self { directory };
        std::fs::create_dir(mounted.root()).expect("a mount point");
        let status = Command::new("mount")
            .args(["-t", "erofs", "-o", "ro,loop"])
            .arg(&path)
            .arg(mounted.root())
            .status()
            .expect("mount is installed");
        assert!(status.success(), "the kernel does not mount the disk");
        mounted
    }

    /// The mounted filesystem.
    pub(in crate::image) fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.root()).status();
        if !std::thread::panicking() {
            assert!(status.expect("umount is installed").success());
        }
    }
}

fn compose(disk: &ImageDisk, path: &Path) {
    let mut out = File::create(path).expect("a temporary file");
    for extent in &disk.extents {
        let mut file = extent.file.try_clone().expect("a descriptor");
        file.seek(SeekFrom::Start(extent.offset))
            .expect("inside the file");
        let copied = io::copy(&mut io::Read::take(file, extent.length), &mut out);
        assert_eq!(copied.expect("room for a copy"), extent.length);
    }
}
