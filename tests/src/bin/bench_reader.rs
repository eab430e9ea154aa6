//! Reads in a guest, and says how long it took. One line each: what, nanoseconds, bytes.
//!
//! `isopod-bench-reader TREE FILE`
//!
//! All files of a tree as `tar` reads them, but for a copy to nowhere: GNU's tar does not even open
//! files when the archive is `/dev/null`. Then blocks of a file in random order. Each once after the
//! kernel has dropped its caches, and once more.
#![expect(unsafe_code, reason = "mlockall has no safe wrapper here")]

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Bytes of one read of a file in a tree: tar's record (its manual, "Blocking Factor").
const RECORD: usize = 20 * 512;

/// Bytes of one random read, and how many there are.
const BLOCK: usize = 4096;
const READS: u32 = 1024;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (Some(folder), Some(file)) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: isopod-bench-reader TREE FILE"));
    };
    // SAFETY: it takes no pointer. The program's own pages are then in memory whatever is dropped.
    if unsafe { libc::mlockall(libc::MCL_CURRENT) } != 0 {
        return Err(io::Error::last_os_error());
    }
    measure("tar", || tree(&folder))?;
    measure("random", || random(&file))
}

/// Does it cold, then warm.
fn measure(what: &str, mut read: impl FnMut() -> io::Result<u64>) -> io::Result<()> {
    // proc(5): page cache, dentries and inodes, of what is not dirty.
    fs::write("/proc/sys/vm/drop_caches", "3")?;
    for state in ["cold", "warm"] {
        let begin = Instant::now();
        let bytes = read()?;
        let took = begin.elapsed().as_nanos();
        println!("{what}_{state} {took} {bytes}");
        io::stdout().flush()?;
        // If it goes to a disk, it has to get there while nothing is measured. A pipe knows no fsync.
        let _ = rustix::fs::fsync(io::stdout());
    }
    Ok(())
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

/// Reads blocks of `path` in an order that is always the same; their bytes.
fn random(path: &Path) -> io::Result<u64> {
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    let mut block = [0; BLOCK];
    // xorshift64*, as Vigna has it.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..READS {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let number = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % blocks;
        file.read_exact_at(&mut block, number * BLOCK as u64)?;
    }
    Ok(u64::from(READS) * BLOCK as u64)
}
