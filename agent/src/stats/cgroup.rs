//! The files of a cgroup (kernel documentation, cgroup-v2).

use std::fs;
use std::path::Path;

use isopod_proto::agent::{CgroupStats, CpuStats, IoStats, MemoryStats, Pressure, Stall};

use crate::container::Cgroup;

/// What the group and those below it use. Blocking.
pub(crate) fn read(group: &Cgroup) -> CgroupStats {
    let path = group.path();
    CgroupStats {
        cpu: cpu(path).into(),
        memory: memory(path).into(),
        io: io(path).into(),
        processes: group
            .pids()
            .map(|pids| u64::try_from(pids.len()).unwrap_or(u64::MAX))
            .unwrap_or_default(),
        threads: number(path, "pids.current").unwrap_or_default(),
        threads_limit: number(path, "pids.max").unwrap_or_default(),
        ..Default::default()
    }
}

fn cpu(path: &Path) -> Option<CpuStats> {
    let stat = text(path, "cpu.stat")?;
    let value = |key| value(&stat, key);
    Some(CpuStats {
        usage_us: value("usage_usec"),
        user_us: value("user_usec"),
        system_us: value("system_usec"),
        periods: value("nr_periods"),
        throttled_periods: value("nr_throttled"),
        throttled_us: value("throttled_usec"),
        pressure: pressure(path, "cpu.pressure").into(),
        ..Default::default()
    })
}

fn memory(path: &Path) -> Option<MemoryStats> {
    let usage = number(path, "memory.current")?;
    let stat = text(path, "memory.stat").unwrap_or_default();
    let events = text(path, "memory.events").unwrap_or_default();
    let value = |key| self::value(&stat, key);
    Some(MemoryStats {
        usage,
        peak: number(path, "memory.peak").unwrap_or_default(),
        limit: number(path, "memory.max").unwrap_or_default(),
        anon: value("anon"),
        file: value("file"),
        mapped_file: value("file_mapped"),
        active_file: value("active_file"),
        inactive_file: value("inactive_file"),
        kernel: value("kernel"),
        page_faults: value("pgfault"),
        major_page_faults: value("pgmajfault"),
        swap: number(path, "memory.swap.current").unwrap_or_default(),
        limit_hits: self::value(&events, "max"),
        oom_kills: self::value(&events, "oom_kill"),
        pressure: pressure(path, "memory.pressure").into(),
        ..Default::default()
    })
}

fn io(path: &Path) -> Option<IoStats> {
    let stat = text(path, "io.stat")?;
    let sum = |key| sum(&stat, key);
    Some(IoStats {
        read_bytes: sum("rbytes"),
        written_bytes: sum("wbytes"),
        reads: sum("rios"),
        writes: sum("wios"),
        pressure: pressure(path, "io.pressure").into(),
        ..Default::default()
    })
}

fn pressure(path: &Path, file: &str) -> Option<Pressure> {
    let text = text(path, file)?;
    Some(Pressure {
        some: stall(&text, "some").into(),
        full: stall(&text, "full").into(),
        ..Default::default()
    })
}

/// The line of a pressure file that begins with `kind` (kernel documentation, psi).
fn stall(text: &str, kind: &str) -> Option<Stall> {
    let mut words = text
        .lines()
        .map(str::split_ascii_whitespace)
        .find_map(|mut words| (words.next() == Some(kind)).then_some(words))?;
    let mut stall = Stall::new();
    for (key, value) in words.by_ref().filter_map(|word| word.split_once('=')) {
        let average = || value.parse().unwrap_or_default();
        match key {
            "avg10" => stall.avg10 = average(),
            "avg60" => stall.avg60 = average(),
            "avg300" => stall.avg300 = average(),
            "total" => stall.total_us = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    Some(stall)
}

fn text(path: &Path, file: &str) -> Option<String> {
    fs::read_to_string(path.join(file)).ok()
}

/// A file of one number; none for "max", and where there is no such file.
fn number(path: &Path, file: &str) -> Option<u64> {
    text(path, file)?.trim().parse().ok()
}

/// The number behind `key` in a file of keys and values; 0 where there is none.
fn value(text: &str, key: &str) -> u64 {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find_map(|(name, value)| (name == key).then(|| value.trim().parse().ok())?)
        .unwrap_or_default()
}

/// The sum of `key=` over the lines of a file with one device each.
fn sum(text: &str, key: &str) -> u64 {
    text.split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(name, _)| *name == key)
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn keys_are_found_whole_and_not_as_beginnings() {
        let stat = "anon_thp 7\nanon 5\nfile_mapped 3\nfile 9\n";
        assert_eq!(
            (value(stat, "anon"), value(stat, "file"), value(stat, "x")),
            (5, 9, 0)
        );
    }

    #[test]
    fn devices_are_added_up() {
        let stat =
            "254:0 rbytes=10 wbytes=1 rios=2 wios=3 dbytes=0 dios=0\n254:16 rbytes=5 wbytes=2\n";
        assert_eq!((sum(stat, "rbytes"), sum(stat, "wbytes")), (15, 3));
    }

    #[test]
    fn a_group_without_controllers_tells_the_time_that_it_used_and_nothing_else() {
        let folder = group(&[("cpu.stat", "usage_usec 42\nuser_usec 30\nsystem_usec 12\n")]);
        let cpu = cpu(folder.path()).unwrap();
        assert_eq!((cpu.usage_us, cpu.user_us, cpu.system_us), (42, 30, 12));
        assert!(cpu.pressure.is_none());
        assert!(memory(folder.path()).is_none());
        assert!(io(folder.path()).is_none());
    }

    #[test]
    fn no_limit_is_none_and_a_limit_is_told() {
        let folder = group(&[
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nmax 3\noom 1\noom_kill 1\n"),
        ]);
        let unlimited = memory(folder.path()).unwrap();
        assert_eq!((unlimited.usage, unlimited.limit), (4096, 0));
        assert_eq!((unlimited.limit_hits, unlimited.oom_kills), (3, 1));
        fs::write(folder.path().join("memory.max"), "8192\n").unwrap();
        assert_eq!(memory(folder.path()).unwrap().limit, 8192);
    }

    #[test]
    fn pressure_tells_some_and_full_apart() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\n\
                    full avg10=0.00 avg60=0.00 avg300=0.10 total=99\n";
        let some = stall(text, "some").unwrap();
        assert_eq!((some.avg10, some.avg60, some.total_us), (1.5, 0.25, 1234));
        let full = stall(text, "full").unwrap();
        assert_eq!((full.avg300, full.total_us), (0.1, 99));
        assert!(stall("", "some").is_none());
    }
}
