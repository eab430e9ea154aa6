//! What a pod is made of on the host: VMM, kernel, the agent's image.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Command, Stdio};

use super::Check;
use crate::config::GuestRoot;
use crate::image::{EROFS_MAGIC, EROFS_SUPER_OFFSET};
use crate::version::VERSION;

const VMM: &str = "vmm";
const KERNEL: &str = "kernel";
const AGENT_IMAGE: &str = "agent image";
const INITRAMFS: &str = "initramfs";

/// ELF-64 object file format: lengths of the header and of a program header.
const ELF_HEADER_LEN: usize = 64;
const PROGRAM_HEADER_LEN: usize = 56;
/// Most program headers that a kernel has.
const PROGRAM_HEADERS_MAX: usize = 64;
/// `e_machine` of x86-64.
const EM_X86_64: u16 = 62;
/// `p_type` of notes.
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY`: the PVH entry point (Xen's public/elfnote.h).
const NOTE_PHYS32_ENTRY: u32 = 18;
/// Longest notes that are read, in bytes.
const NOTES_MAX: u64 = 64 * 1024;

/// Length of a newc cpio header (cpio(5)).
const CPIO_HEADER_LEN: usize = 110;
/// Most entries that are looked through for `init`.
const CPIO_ENTRIES_MAX: usize = 10_000;
/// Longest name in a cpio archive, in bytes.
const CPIO_NAME_MAX: u32 = 4096;

/// Whether the VMM is there, can be executed and is the daemon's version.
pub(super) fn vmm(path: &Path) -> Check {
    let advice = "install isopod-vmm of the same release, or set vm.vmm";
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => return Check::fail(VMM, format!("{}: {error}", path.display()), advice),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let text = text.trim();
    if output.status.success() && text.split_whitespace().last() == Some(VERSION) {
        return Check::ok(VMM, format!("{} is {text}", path.display()));
    }
    let found = format!("{} says {text:?}, and isopod is {VERSION}", path.display());
    Check::fail(VMM, found, advice)
}

/// Whether the kernel is one that can be booted: an ELF file for x86-64 with a PVH entry point.
pub(super) fn kernel(path: &Path) -> Check {
    let advice = "build it (cargo xtask guest-image) or set vm.kernel";
    match File::open(path).and_then(|mut file| has_pvh_entry(&mut file)) {
        Ok(true) => Check::ok(KERNEL, format!("{} has a PVH entry point", path.display())),
        Ok(false) => {
            let found = format!("{} is no vmlinux with a PVH entry point", path.display());
            Check::fail(KERNEL, found, advice)
        }
        Err(error) => Check::fail(KERNEL, unreadable(path, &error), advice),
    }
}

/// Whether guests have a root file system.
pub(super) fn root(root: &GuestRoot) -> Check {
    match root {
        GuestRoot::AgentImage(path) => agent_image(path),
        GuestRoot::Initramfs(path) => initramfs(path),
    }
}

/// Whether the agent's image is an EROFS file system.
fn agent_image(path: &Path) -> Check {
    let advice = "build it (cargo xtask guest-image) or set vm.agent_image";
    match File::open(path).and_then(|mut file| is_erofs(&mut file)) {
        Ok(true) => Check::ok(AGENT_IMAGE, format!("{} is EROFS", path.display())),
        Ok(false) => {
            let found = format!("{} is no EROFS file system", path.display());
            Check::fail(AGENT_IMAGE, found, advice)
        }
        Err(error) => Check::fail(AGENT_IMAGE, unreadable(path, &error), advice),
    }
}

/// Whether the initramfs is a cpio archive with an `/init`.
fn initramfs(path: &Path) -> Check {
    let advice = "build it (cargo xtask guest-image) or set vm.initramfs";
    match File::open(path).and_then(|mut file| has_init(&mut file)) {
        Ok(true) => Check::ok(INITRAMFS, format!("{} has an init", path.display())),
        Ok(false) => {
            let found = format!(
                "{} is no uncompressed cpio archive with an init",
                path.display()
            );
            Check::fail(INITRAMFS, found, advice)
        }
        Err(error) => Check::fail(INITRAMFS, unreadable(path, &error), advice),
    }
}

fn is_erofs(file: &mut (impl Read + Seek)) -> std::io::Result<bool> {
    let mut magic = [0; 4];
    file.seek(SeekFrom::Start(EROFS_SUPER_OFFSET))?;
    file.read_exact(&mut magic)?;
    Ok(u32::from_le_bytes(magic) == EROFS_MAGIC)
}

fn unreadable(path: &Path, error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => format!("{} ends too early", path.display()),
        _ => format!("{}: {error}", path.display()),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

fn has_pvh_entry(file: &mut (impl Read + Seek)) -> std::io::Result<bool> {
    let mut header = [0; ELF_HEADER_LEN];
    file.read_exact(&mut header)?;
    // 64-bit, little-endian, x86-64.
    let elf = header.starts_with(b"\x7fELF\x02\x01") && u16_at(&header, 18) == EM_X86_64;
    let count = usize::from(u16_at(&header, 56));
    if !elf || usize::from(u16_at(&header, 54)) != PROGRAM_HEADER_LEN || count > PROGRAM_HEADERS_MAX
    {
        return Ok(false);
    }
    let mut headers = vec![0; count * PROGRAM_HEADER_LEN];
    file.seek(SeekFrom::Start(u64_at(&header, 32)))?;
    file.read_exact(&mut headers)?;
    for header in headers.chunks_exact(PROGRAM_HEADER_LEN) {
        let (offset, length) = (u64_at(header, 8), u64_at(header, 32));
        if u32_at(header, 0) != PT_NOTE || length > NOTES_MAX {
            continue;
        }
        let mut notes = vec![0; usize::try_from(length).unwrap_or_default()];
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(&mut notes)?;
        if notes_name_an_entry(&notes) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether one of these notes is Xen's of the entry point: lengths of name and description, type,
/// then both padded to 4 bytes.
fn notes_name_an_entry(mut notes: &[u8]) -> bool {
    while notes.len() >= 12 {
        let padded = |at| {
            usize::try_from(u32_at(notes, at))
                .unwrap_or(usize::MAX)
                .checked_next_multiple_of(4)
        };
        let (Some(name), Some(description)) = (padded(0), padded(4)) else {
            return false;
        };
        let kind = u32_at(notes, 8);
        if kind == NOTE_PHYS32_ENTRY && description >= 4 && notes[12..].starts_with(b"Xen\0") {
            return true;
        }
        let next = name
            .checked_add(description)
            .and_then(|length| notes.get(12..)?.get(length..));
        let Some(next) = next else { return false };
        notes = next;
    }
    false
}

fn has_init(archive: &mut (impl Read + Seek)) -> std::io::Result<bool> {
    for _ in 0..CPIO_ENTRIES_MAX {
        let mut header = [0; CPIO_HEADER_LEN];
        archive.read_exact(&mut header)?;
        // The fields are 8 hexadecimal digits each, after a magic of 6.
        let field = |number: usize| {
            let digits = header.get(6 + 8 * number..14 + 8 * number)?;
            u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
        };
        if !header.starts_with(b"070701") && !header.starts_with(b"070702") {
            return Ok(false);
        }
        let (Some(size), Some(name_len @ 1..=CPIO_NAME_MAX)) = (field(6), field(11)) else {
            return Ok(false);
        };
        let mut name = vec![0; usize::try_from(name_len).unwrap_or_default()];
        archive.read_exact(&mut name)?;
        name.pop();
        match name.as_slice() {
            b"init" | b"/init" | b"./init" => return Ok(size > 0),
            b"TRAILER!!!" => return Ok(false),
            _ => {}
        }
        // Name and data are each padded to 4 bytes, counted from the archive's beginning.
        let here = archive.stream_position()?.next_multiple_of(4);
        let next = (here + u64::from(size)).next_multiple_of(4);
        archive.seek(SeekFrom::Start(next))?;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::os::unix::fs::PermissionsExt;

    use super::super::Verdict;
    use super::*;

    fn elf(note_kind: u32) -> Vec<u8> {
        let mut notes = Vec::new();
        for word in [4, 8, 6] {
            notes.extend(u32::to_le_bytes(word));
        }
        notes.extend(b"Xen\0");
        notes.extend([0; 8]);
        for word in [4, 4, note_kind] {
            notes.extend(u32::to_le_bytes(word));
        }
        notes.extend(b"Xen\0");
        notes.extend(0x0100_0000_u32.to_le_bytes());

        let mut file = vec![0; ELF_HEADER_LEN + PROGRAM_HEADER_LEN];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[18] = 62;
        file[32] = 64;
        file[54] = 56;
        file[56] = 1;
        file[64] = 4;
        file[64 + 8] = 120;
        file[64 + 32] = u8::try_from(notes.len()).unwrap();
        file.extend(notes);
        file
    }

    fn cpio(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut archive = Vec::new();
        for (name, data) in entries.iter().chain([&("TRAILER!!!", &b""[..])]) {
            let mut fields = [0; 13];
            fields[6] = data.len();
            fields[11] = name.len() + 1;
            archive.extend(b"070701");
            for field in fields {
                archive.extend(format!("{field:08X}").bytes());
            }
            archive.extend(name.bytes().chain([0]));
            archive.resize(archive.len().next_multiple_of(4), 0);
            archive.extend(*data);
            archive.resize(archive.len().next_multiple_of(4), 0);
        }
        archive
    }

    #[test]
    fn kernel_with_the_pvh_note_is_found_and_one_without_is_not() {
        assert!(has_pvh_entry(&mut Cursor::new(elf(18))).unwrap());
        assert!(!has_pvh_entry(&mut Cursor::new(elf(17))).unwrap());
        let bzimage = [0; 4096];
        assert!(!has_pvh_entry(&mut Cursor::new(bzimage)).unwrap());
    }

    #[test]
    fn truncated_kernel_is_told_apart() {
        let file = elf(18);
        for length in [0, 63, 100, file.len() - 1] {
            let error = has_pvh_entry(&mut Cursor::new(&file[..length])).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn archive_with_an_init_is_found_and_others_are_not() {
        let init = |entries: &[(&str, &[u8])]| has_init(&mut Cursor::new(cpio(entries))).unwrap();
        assert!(init(&[("dev", b""), ("a", b"12345"), ("init", b"\x7fELF")]));
        assert!(!init(&[("init", b"")]));
        assert!(!init(&[("sbin/init", b"x")]));
        assert!(!has_init(&mut Cursor::new([0x1f; 4096])).unwrap());
    }

    #[test]
    fn an_image_is_told_by_its_superblock() {
        let mut image = vec![0; 4096];
        assert!(!is_erofs(&mut Cursor::new(&image)).unwrap());
        image[1024..1028].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        assert!(is_erofs(&mut Cursor::new(&image)).unwrap());
        assert!(is_erofs(&mut Cursor::new(&image[..1026])).is_err());
    }

    #[test]
    fn missing_files_are_told_with_their_path_and_what_to_do() {
        let path = Path::new("/nonexistent/file");
        for check in [vmm(path), kernel(path), agent_image(path), initramfs(path)] {
            assert_eq!(check.verdict, Verdict::Fail);
            assert!(check.found.starts_with("/nonexistent/file: "), "{check:?}");
            assert!(!check.advice.is_empty());
        }
    }

    #[test]
    fn vmm_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("isopod-vmm");
        let script = |version: &str| {
            std::fs::write(&path, format!("#!/bin/sh\necho isopod-vmm {version}\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            vmm(&path)
        };
        assert_eq!(script(VERSION).verdict, Verdict::Ok);
        let check = script("0.0.0-other");
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.found.contains("0.0.0-other"), "{check:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(bytes in proptest::collection::vec(0_u8.., 0..400)) {
            let _ = notes_name_an_entry(&bytes);
            let _ = has_init(&mut Cursor::new([&b"070701"[..], &bytes].concat()));
            let _ = has_pvh_entry(&mut Cursor::new([&b"\x7fELF\x02\x01"[..], &bytes].concat()));
        }
    }
}
