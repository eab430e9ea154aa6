//! Reads in a guest, and says how long it took: see `isopod_tests::bench::program::inside`.
//!
//! `isopod-bench-reader TREE FILE`
//!
//! All files of a tree as `tar` reads them, but for a copy to nowhere: GNU's tar does not even open
//! files when the archive is `/dev/null`. Then blocks of a file in random order. Each once after the
//! kernel has dropped its caches, and once more.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use isopod_tests::bench::RANDOM_READS;
use isopod_tests::bench::program::inside::{Measurements, random_reads};

/// Bytes of one read of a file in a tree: tar's record (its manual, "Blocking Factor").
const RECORD: usize = 20 * 512;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: isopod-bench-reader TREE FILE"));
    };
    let mut measurements = Measurements::begin()?;
    measurements.measure_twice("tar", || tree(&folder))?;
    measurements.measure_twice("random", || random_reads(&file, RANDOM_READS))?;
    measurements.say()
}

/// Looks at everything below `folder` and reads its files; their bytes.
fn tree(folder: &Path) -> io::Result<u64> {
    let mut record = vec![0; RECORD];
    let mut bytes = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let kind = fs::symlink_metadata(&path)?.file_type();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                let mut file = File::open(&path)?;
                loop {
                    match file.read(&mut record)? {
                        0 => break,
                        length => bytes += length as u64,
                    }
                }
            }
        }
    }
    Ok(bytes)
}
