//! Memory of a VMM beside its guest's.

use anyhow::{Context as _, Result, ensure};

/// Resident bytes of a process without its guest's RAM: the mappings that are at least as long as
/// that.
pub(super) fn beside_guest(pid: i32, guest_bytes: u64) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let (beside, guest) = split(&smaps, guest_bytes);
    ensure!(guest > 0, "{path} shows no mapping of the guest's RAM");
    Ok(beside)
}

/// Resident bytes beside the guest's RAM, and of it.
fn split(smaps: &str, guest_bytes: u64) -> (u64, u64) {
    let (mut beside, mut guest, mut size) = (0, 0, 0);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(kib)) = (words.next(), words.next()) else {
            continue;
        };
        let bytes = kib.parse::<u64>().unwrap_or(0) << 10;
        match name {
            "Size:" => size = bytes,
            "Rss:" if size >= guest_bytes => guest += bytes,
            "Rss:" => beside += bytes,
            _ => {}
        }
    }
    (beside, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_ram_is_told_from_the_rest() {
        let smaps = "55d0-55e0 r-xp 00000000 fe:00 1 /usr/bin/vmm\nSize:   64 kB\nRss:   12 kB\n\
                     7f00-8f00 rw-p 00000000 00:00 0\nSize:   262144 kB\nRss:   20480 kB\nPss: 1 kB\n\
                     7ff0-7ff1 rw-p 00000000 00:00 0 [stack]\nSize:   132 kB\nRss:   8 kB\n";
        assert_eq!(split(smaps, 256 << 20), (20 << 10, 20 << 20));
    }

    #[test]
    fn a_process_without_a_guest_is_refused() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(beside_guest(own, 1 << 50).is_err());
    }
}
