//! For programs that measure in a guest. What they say is a line for each thing: what, nanoseconds, and
//! how much of it, in bytes or in number.
#![expect(unsafe_code, reason = "mlockall has no safe wrapper here")]

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of one random read.
pub const BLOCK: usize = 4096;

/// How long nothing is measured at first: a container's start has its end in the agent, in the VMM and
/// in whoever asked for it.
const QUIET: Duration = Duration::from_millis(200);

/// What a program measures. It is said at the end: the way of a line, through the guest and its VMM to a
/// file on the host, would otherwise be measured with what comes next.
#[derive(Debug)]
pub struct Measurements {
    lines: String,
}

impl Measurements {
    /// Waits until nothing else happens. The program's own pages are in memory from now on, whatever is
    /// dropped.
    ///
    /// # Errors
    /// The program may not keep its pages in memory.
    pub fn begin() -> io::Result<Self> {
        stay_in_memory()?;
        thread::sleep(QUIET);
        Ok(Self {
            lines: String::new(),
        })
    }

    /// Does something, and keeps how long it took.
    ///
    /// # Errors
    /// What is done failed.
    pub fn measure(&mut self, what: &str, act: impl FnOnce() -> io::Result<u64>) -> io::Result<()> {
        let begin = Instant::now();
        let amount = act()?;
        let took = begin.elapsed().as_nanos();
        self.lines += &format!("{what} {took} {amount}\n");
        Ok(())
    }

    /// Does it cold, then warm: when the guest has forgotten files, and once more.
    ///
    /// # Errors
    /// As of [`forget`] and [`Self::measure`].
    pub fn measure_twice(
        &mut self,
        what: &str,
        mut act: impl FnMut() -> io::Result<u64>,
    ) -> io::Result<()> {
        forget()?;
        self.measure(&format!("{what}_cold"), &mut act)?;
        self.measure(&format!("{what}_warm"), &mut act)
    }

    /// Says what was measured.
    ///
    /// # Errors
    /// Nobody listens.
    pub fn say(self) -> io::Result<()> {
        io::stdout().write_all(self.lines.as_bytes())?;
        // If it goes to a disk, it has to get there. A pipe knows no fsync.
        let _ = rustix::fs::fsync(io::stdout());
        Ok(())
    }
}

/// The program's own pages are in memory from now on.
fn stay_in_memory() -> io::Result<()> {
    // SAFETY: it takes no pointer.
    match unsafe { libc::mlockall(libc::MCL_CURRENT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the guest forget pages, names and inodes of files, as far as they are not dirty (proc(5)).
///
/// # Errors
/// The program is not privileged.
pub fn forget() -> io::Result<()> {
    fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Reads so many blocks of a file, in an order that is always the same; their bytes.
///
/// # Errors
/// The file cannot be read.
pub fn random_reads(path: &Path, count: u32) -> io::Result<u64> {
    let file = File::open(path)?;
    let blocks = file.metadata()?.len() / BLOCK as u64;
    let mut block = [0; BLOCK];
    // xorshift64*, as Vigna has it.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..count {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let number = (state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % blocks;
        file.read_exact_at(&mut block, number * BLOCK as u64)?;
    }
    Ok(u64::from(count) * BLOCK as u64)
}
