//! A disk's sectors in files: extents one after the other.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use super::{DiskError, SECTOR_SIZE};

/// Most extents of a disk: an image's metadata and its layers, of which OCI images have at most
/// some hundred.
const EXTENTS_MAX: usize = 512;

/// A part of a file that is a part of a disk.
#[derive(Debug)]
pub(crate) struct Extent {
    /// The file, open for reading, and for writing when the disk is writable.
    pub(crate) file: File,
    /// Where in the file, in bytes.
    pub(crate) offset: u64,
    /// How much of it, in bytes: a multiple of 512.
    pub(crate) length: u64,
}

/// Where a piece of a disk is.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    pub(super) file: BorrowedFd<'a>,
    /// In the file, in bytes.
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// The extents of a disk, in order and without holes.
#[derive(Debug)]
pub(crate) struct Extents {
    extents: Vec<Extent>,
    /// Where each extent ends on the disk, in bytes. Ascending.
    ends: Vec<u64>,
}

impl Extents {
    /// Checks extents that make up a disk.
    pub(crate) fn new(extents: Vec<Extent>) -> Result<Self, DiskError> {
        if extents.is_empty() || extents.len() > EXTENTS_MAX {
            return Err(DiskError::Count(extents.len()));
        }
        let mut ends = Vec::with_capacity(extents.len());
        let mut end = 0_u64;
        for (index, extent) in extents.iter().enumerate() {
            let in_range = extent
                .offset
                .checked_add(extent.length)
                .filter(|end| i64::try_from(*end).is_ok());
            let total = end
                .checked_add(extent.length)
                .filter(|end| i64::try_from(*end).is_ok());
            let (Some(file_end), Some(total)) = (in_range, total) else {
                return Err(DiskError::Range(index));
            };
            if extent.length == 0 || !extent.length.is_multiple_of(SECTOR_SIZE) {
                return Err(DiskError::Length {
                    index,
                    length: extent.length,
                });
            }
            let metadata = extent
                .file
                .metadata()
                .map_err(|source| DiskError::File { index, source })?;
            if metadata.is_file() && metadata.len() < file_end {
                return Err(DiskError::Short {
                    index,
                    length: metadata.len(),
                    end: file_end,
                });
            }
            end = total;
            ends.push(end);
        }
        Ok(Self { extents, ends })
    }

    /// How many extents there are.
    pub(super) fn count(&self) -> usize {
        self.extents.len()
    }

    /// Size of the disk in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The first piece of the `length` bytes at `offset` of the disk: where they are, and how many
    /// of them are there. `None` beyond the end, or when `length` is 0.
    pub(super) fn locate(&self, offset: u64, length: u64) -> Option<Piece<'_>> {
        let index = self.ends.partition_point(|end| *end <= offset);
        let (extent, end) = (self.extents.get(index)?, self.ends.get(index)?);
        let left = end - offset;
        let length = length.min(left);
        (length > 0).then(|| Piece {
            file: extent.file.as_fd(),
            offset: extent.offset + extent.length - left,
            length,
        })
    }

    /// Every extent, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter()
    }

    /// Every file, in order.
    pub(super) fn files(&self) -> impl Iterator<Item = &File> {
        self.extents.iter().map(|extent| &extent.file)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    fn file_of(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn extent(file_len: u64, offset: u64, length: u64) -> Extent {
        Extent {
            file: file_of(file_len),
            offset,
            length,
        }
    }

    #[test]
    fn extents_that_cannot_be_are_refused() {
        let error = |extents| Extents::new(extents).unwrap_err();
        assert!(matches!(error(vec![]), DiskError::Count(0)));
        let many = (0..=EXTENTS_MAX).map(|_| extent(512, 0, 512)).collect();
        assert!(matches!(error(many), DiskError::Count(_)));
        for length in [0, 1, 513] {
            let extents = vec![extent(4096, 0, length)];
            assert!(matches!(error(extents), DiskError::Length { index: 0, .. }));
        }
        let short = vec![extent(1024, 0, 1024), extent(1024, 513, 512)];
        assert!(matches!(error(short), DiskError::Short { index: 1, .. }));
        let far = vec![extent(512, u64::MAX, 512)];
        assert!(matches!(error(far), DiskError::Range(0)));
    }

    #[test]
    fn nothing_is_located_beyond_the_end() {
        let extents = Extents::new(vec![extent(1024, 512, 512)]).unwrap();
        assert_eq!(extents.size(), 512);
        assert!(extents.locate(512, 1).is_none());
        assert!(extents.locate(u64::MAX, 1).is_none());
        assert!(extents.locate(0, 0).is_none());
        assert_eq!(extents.locate(511, 9).unwrap().length, 1);
    }

    proptest! {
        /// The disk reads as the concatenation of its extents, wherever a read begins and ends.
        #[test]
        fn a_disk_is_the_concatenation_of_its_extents(
            shapes in prop::collection::vec((0_u64..5000, 1_u64..6), 1..8),
            start in 0_u64..30_000,
            length in 0_u64..30_000,
        ) {
            let mut disk = Vec::new();
            let mut extents = Vec::new();
            for (n, (offset, sectors)) in shapes.iter().enumerate() {
                let length = sectors * SECTOR_SIZE;
                let content: Vec<u8> = (0..offset + length)
                    .map(|at| u8::try_from((at * 31 + n as u64 * 97) % 251).unwrap())
                    .collect();
                let file = tempfile::tempfile().unwrap();
                file.write_all_at(&content, 0).unwrap();
                disk.extend_from_slice(&content[usize::try_from(*offset).unwrap()..]);
                extents.push(Extent { file, offset: *offset, length });
            }
            let extents = Extents::new(extents).unwrap();
            prop_assert_eq!(extents.size(), disk.len() as u64);
            let (mut at, mut left, mut read) = (start, length, Vec::new());
            while let Some(piece) = extents.locate(at, left) {
                prop_assert!(piece.length <= left);
                let file = extents.files().find(|file| file.as_raw_fd() == piece.file.as_raw_fd());
                let mut bytes = vec![0; usize::try_from(piece.length).unwrap()];
                file.unwrap().read_exact_at(&mut bytes, piece.offset).unwrap();
                read.extend(bytes);
                at += piece.length;
                left -= piece.length;
            }
            let from = usize::try_from(start).unwrap().min(disk.len());
            let to = usize::try_from(start + length).unwrap().min(disk.len());
            prop_assert_eq!(&read, &disk[from..to]);
        }
    }
}
