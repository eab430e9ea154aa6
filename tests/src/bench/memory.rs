//! Memory of a VMM beside its guest's: RAM, and the file that all guests run the agent from.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// Resident bytes of a process without its guest's RAM and without `image`, of which the host has one
/// copy for all guests.
pub(super) fn beside_guest(pid: i32, guest_bytes: u64, image: Option<&Path>) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let smaps = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let mappings = mappings(&smaps);
    let guest = guest(&mappings, guest_bytes)
        .with_context(|| format!("{path} shows no {guest_bytes} bytes of guest RAM"))?;
    let shown = mappings
        .iter()
        .filter(|mapping| Some(&*mapping.path) == image);
    let shown: u64 = shown.map(|mapping| mapping.resident).sum();
    Ok(resident(&mappings) - resident(guest) - shown)
}

/// One mapping of a process, as `smaps` (proc(5)) has it.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    /// Bytes in memory.
    resident: u64,
    /// The file, or a name in brackets, or nothing.
    path: PathBuf,
}

/// The mappings that make up guest RAM: adjacent ones, whose length is the guest's to the byte, around
/// the largest of all.
fn guest(mappings: &[Mapping], bytes: u64) -> Option<&[Mapping]> {
    let size = |mapping: &Mapping| mapping.end - mapping.start;
    let largest = (0..mappings.len()).max_by_key(|index| size(&mappings[*index]))?;
    (0..=largest)
        .flat_map(|first| (largest..mappings.len()).map(move |last| &mappings[first..=last]))
        .find(|run| {
            let adjacent = run.windows(2).all(|pair| pair[0].end == pair[1].start);
            adjacent && run.iter().map(size).sum::<u64>() == bytes
        })
}

fn resident(mappings: &[Mapping]) -> u64 {
    mappings.iter().map(|mapping| mapping.resident).sum()
}

fn mappings(smaps: &str) -> Vec<Mapping> {
    let address = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else {
            continue;
        };
        if let Some((start, end)) = first.split_once('-')
            && let (Some(start), Some(end)) = (address(start), address(end))
        {
            mappings.push(Mapping {
                start,
                end,
                resident: 0,
                path: line.splitn(6, ' ').nth(5).unwrap_or_default().trim().into(),
            });
        } else if let ("Rss:", Some(mapping), Ok(kib)) =
            (first, mappings.last_mut(), second.parse::<u64>())
        {
            mapping.resident = kib << 10;
        }
    }
    mappings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RAM in three parts of 2, 5 and 1 pages, between a program and a stack that touches it.
    const SMAPS: &str = "1000-9000 r-xp 00000000 fe:00 1 /usr/bin/vmm\nSize: 32 kB\nRss: 12 kB\n\
        a000-c000 rw-p 00000000 00:00 0 \nRss: 4 kB\nPss: 1 kB\nVmFlags: rd wr\n\
        c000-11000 rw-p 00000000 00:00 0 \nRss: 20 kB\n\
        11000-12000 rw-p 00000000 fe:00 2 /a b/initramfs.cpio\nRss: 4 kB\n\
        12000-14000 rw-p 00000000 00:00 0 [stack]\nRss: 8 kB\n";

    #[test]
    fn the_guests_ram_is_told_from_what_lies_beside_it() {
        let mut mappings = mappings(&SMAPS.replace("1000-9000", "1000-2000"));
        assert_eq!(mappings.len(), 5);
        let ram = guest(&mappings, 8 << 12).unwrap();
        assert_eq!((ram.len(), resident(ram)), (3, 28 << 10));
        assert_eq!(resident(&mappings), 48 << 10);
        assert_eq!(mappings[0].path, Path::new("/usr/bin/vmm"));
        assert_eq!(mappings[1].path, Path::new(""));
        assert_eq!(mappings[3].path, Path::new("/a b/initramfs.cpio"));
        mappings.remove(2);
        assert!(guest(&mappings, 8 << 12).is_none(), "there is a hole");
    }

    #[test]
    fn a_process_without_a_guest_is_refused() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(beside_guest(own, 1 << 50, None).is_err());
    }
}
