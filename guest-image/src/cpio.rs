//! The `newc` variant of cpio, the only archive format of an initramfs
//! (kernel documentation: driver-api/early-userspace/buffer-format).
//!
//! ```text
//! archive  := entry* trailer padding
//! entry    := header(110 bytes of ASCII) name NUL pad(4) data pad(4)
//! ```
//!
//! Inode numbers count up from 1, owners are root and times are the epoch, so an archive is a
//! function of what was put into it. Nothing is sorted: the kernel wants a folder before what it
//! holds, so the caller's order is kept.

/// What every archive's length is a multiple of, in bytes: a page, so that it can be mapped.
pub const ALIGNMENT: usize = 4096;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const TYPE_DIRECTORY: u32 = 0o040_000;
const TYPE_CHARACTER_DEVICE: u32 = 0o020_000;
const TYPE_FILE: u32 = 0o100_000;

/// An entry that the format cannot hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{path}: a file of {bytes} bytes is over cpio's limit of 4 GiB")]
pub struct CpioError {
    /// The entry.
    pub path: String,
    /// Its length.
    pub bytes: usize,
}

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// An archive without entries.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a folder. `path` has no leading slash; `mode` is permission bits.
    pub fn directory(&mut self, path: &str, mode: u32) {
        self.entry(path, TYPE_DIRECTORY | mode, (0, 0), 0, &[]);
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, TYPE_CHARACTER_DEVICE | mode, (major, minor), 0, &[]);
    }

    /// Adds a regular file.
    ///
    /// # Errors
    ///
    /// [`CpioError`] when the file is 4 GiB or longer.
    pub fn file(&mut self, path: &str, mode: u32, data: &[u8]) -> Result<(), CpioError> {
        let Ok(length) = u32::try_from(data.len()) else {
            return Err(CpioError {
                path: path.to_owned(),
                bytes: data.len(),
            });
        };
        self.entry(path, TYPE_FILE | mode, (0, 0), length, data);
        Ok(())
    }

    /// Ends the archive and pads it to [`ALIGNMENT`].
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.header(TRAILER, 0, 0, (0, 0), 0);
        self.pad(ALIGNMENT);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), length: u32, data: &[u8]) {
        self.entries += 1;
        self.header(path, self.entries, mode, device, length);
        self.bytes.extend_from_slice(data);
        self.pad(4);
    }

    fn header(&mut self, path: &str, inode: u32, mode: u32, device: (u32, u32), length: u32) {
        let links = if mode & TYPE_DIRECTORY == TYPE_DIRECTORY {
            2
        } else {
            1
        };
        let name_length = u32::try_from(path.len() + 1).expect("a path is far shorter than 4 GiB");
        self.bytes.extend_from_slice(MAGIC.as_bytes());
        let fields = [
            inode,
            mode,
            0, // owner
            0, // group
            links,
            0, // modification time
            length,
            0, // device that holds the file
            0,
            device.0,
            device.1,
            name_length,
            0, // checksum, unused in this variant
        ];
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
    }

    fn pad(&mut self, alignment: usize) {
        let length = self.bytes.len().next_multiple_of(alignment);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_written_byte_for_byte_as_newc_says() {
        let mut archive = Archive::new();
        archive.file("init", 0o755, b"hello").unwrap();
        let bytes = archive.finish();
        let expected = concat!(
            "070701",
            "00000001",
            "000081ed",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000005",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000005",
            "00000000",
            "init\0",
            "\0",
            "hello",
            "\0\0\0",
            "070701",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000001",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "00000000",
            "0000000b",
            "00000000",
            "TRAILER!!!\0",
            "\0\0\0",
        );
        assert_eq!(
            std::str::from_utf8(&bytes[..expected.len()]).unwrap(),
            expected
        );
        assert!(bytes[expected.len()..].iter().all(|&byte| byte == 0));
        assert_eq!(bytes.len(), ALIGNMENT);
    }

    #[test]
    fn the_same_entries_give_the_same_bytes() {
        let build = || {
            let mut archive = Archive::new();
            archive.directory("dev", 0o755);
            archive.character_device("dev/console", 0o600, 5, 1);
            archive.file("init", 0o755, &[7; 9000]).unwrap();
            archive.finish()
        };
        assert_eq!(build(), build());
    }

    #[test]
    fn an_archive_is_whole_pages() {
        for length in [0, 1, 3600, 4095, 4096, 70_001] {
            let mut archive = Archive::new();
            archive.file("x", 0o644, &vec![1; length]).unwrap();
            assert_eq!(archive.finish().len() % ALIGNMENT, 0, "{length}");
        }
    }

    #[test]
    fn another_cpio_lists_what_was_put_in() {
        let mut archive = Archive::new();
        archive.directory("dev", 0o755);
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, b"#!/bin/sh\n").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("archive.cpio");
        std::fs::write(&path, archive.finish()).unwrap();
        let output = std::process::Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet", "-F"])
            .arg(&path)
            .env("TZ", "UTC")
            .output();
        let Ok(output) = output else {
            return isopod_tests::skip("cpio is not installed");
        };
        let listing = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = listing
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(lines.len(), 3, "{listing}");
        assert_eq!((lines[0][0], lines[0][8]), ("drwxr-xr-x", "dev"));
        assert_eq!(lines[1][0], "crw-------");
        assert_eq!(lines[1].last(), Some(&"dev/console"));
        assert_eq!(
            (lines[2][0], lines[2][4], lines[2][8]),
            ("-rwxr-xr-x", "10", "init")
        );
    }
}
