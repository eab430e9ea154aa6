//! Works with files in a guest, and says how long it took: see `isopod_tests::bench::program::inside`.
//!
//! `isopod-bench-files FOLDER`
//!
//! Many small files are made, looked at, listed and removed; a large one is written and read.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use isopod_tests::bench::files::{FILE_BYTES, FILES, LARGE_BYTES, LISTS, READS, RECORD};
use isopod_tests::bench::program::inside::{Measurements, forget, random_reads};

fn main() -> io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| io::Error::other("usage: isopod-bench-files FOLDER"))?;
    let small = folder.join("small");
    fs::create_dir(&small)?;
    let paths: Vec<PathBuf> = (0..FILES)
        .map(|number| small.join(number.to_string()))
        .collect();
    let mut measurements = Measurements::begin()?;
    measurements.measure("create", || create(&paths))?;
    measurements.measure_twice("stat", || stat(&paths))?;
    forget()?;
    measurements.measure("list", || list(&small))?;
    forget()?;
    measurements.measure("open", || open(&paths))?;
    measurements.measure("unlink", || unlink(&paths))?;

    let large = folder.join("large");
    measurements.measure("write", || write(&large))?;
    measurements.measure_twice("read", || read(&large))?;
    measurements.measure_twice("random", || random_reads(&large, READS))?;
    measurements.say()
}

fn create(paths: &[PathBuf]) -> io::Result<u64> {
    let data = [b'x'; FILE_BYTES];
    for path in paths {
        File::create(path)?.write_all(&data)?;
    }
    Ok(paths.len() as u64)
}

fn stat(paths: &[PathBuf]) -> io::Result<u64> {
    for path in paths {
        black_box(fs::symlink_metadata(path)?);
    }
    Ok(paths.len() as u64)
}

/// Names alone.
fn list(folder: &Path) -> io::Result<u64> {
    let mut count = 0;
    for _ in 0..LISTS {
        for entry in fs::read_dir(folder)? {
            black_box(entry?);
            count += 1;
        }
    }
    Ok(count)
}

/// Opens them and reads what is in them.
fn open(paths: &[PathBuf]) -> io::Result<u64> {
    let mut data = [0; FILE_BYTES];
    for path in paths {
        File::open(path)?.read_exact(&mut data)?;
    }
    Ok(paths.len() as u64)
}

fn unlink(paths: &[PathBuf]) -> io::Result<u64> {
    for path in paths {
        fs::remove_file(path)?;
    }
    Ok(paths.len() as u64)
}

fn write(path: &Path) -> io::Result<u64> {
    let mut file = File::create(path)?;
    let record = vec![b'x'; RECORD];
    for _ in 0..LARGE_BYTES / RECORD as u64 {
        file.write_all(&record)?;
    }
    Ok(LARGE_BYTES)
}

fn read(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut record = vec![0; RECORD];
    let mut bytes = 0;
    loop {
        match file.read(&mut record)? {
            0 => return Ok(bytes),
            length => bytes += length as u64,
        }
    }
}
