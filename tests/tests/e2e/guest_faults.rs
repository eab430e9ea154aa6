//! Guests that do not start: the error says why, comes in bounded time, and nothing stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use isopod_tests::environment;
use isopod_tests::images::elf;
use isopod_tests::node::{self, Images, Options, assert_refused, pod_config};
use tempfile::TempDir;
use tonic::Code;

/// Longest time in which a guest that has ended must be noticed; its start timeout is longer.
const NOTICED: Duration = Duration::from_secs(100);

/// The daemon refuses to make the pod, and undoes what it had begun.
fn run_fails(options: Options, code: Code, message: &str) -> Result<Duration> {
    let mut took = Duration::ZERO;
    node::run(options.images(Images::None), |node| {
        let start = Instant::now();
        assert_refused(node.cri().run_pod(pod_config(node, "p")), code, message);
        took = start.elapsed();
        assert_eq!(node.cri().pods(None)?, []);
        assert_eq!(node.vmms().len(), 0);
        Ok(())
    })?;
    Ok(took)
}

fn folder() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("isopod-guest-").tempdir()?)
}

#[test]
fn a_kernel_that_is_not_one_is_refused() -> Result<()> {
    let folder = folder()?;
    let kernel = folder.path().join("vmlinux");
    fs::write(&kernel, vec![0x5a; 1024 * 1024])?;
    run_fails(
        Options::kvm().kernel(&kernel),
        Code::FailedPrecondition,
        "kernel",
    )?;
    Ok(())
}

#[test]
fn a_kernel_that_is_cut_short_is_refused() -> Result<()> {
    if environment::missing_kvm().is_some() {
        return run_fails(Options::kvm(), Code::Ok, "").map(|_| ());
    }
    let folder = folder()?;
    let kernel = folder.path().join("vmlinux");
    let whole = fs::read(environment::path(environment::KERNEL)?)?;
    fs::write(&kernel, &whole[..whole.len() / 2])?;
    run_fails(
        Options::kvm().kernel(&kernel),
        Code::FailedPrecondition,
        "kernel",
    )?;
    Ok(())
}

#[test]
fn an_agent_image_that_is_not_one_is_refused() -> Result<()> {
    let folder = folder()?;
    let image = folder.path().join("agent.erofs");
    fs::write(&image, vec![0x5a; 64 * 1024])?;
    let options = Options::kvm().vm("agent_image", image.display().to_string());
    run_fails(options, Code::FailedPrecondition, "no EROFS file system")?;
    Ok(())
}

#[test]
fn a_pod_runs_from_an_initramfs_too() -> Result<()> {
    if environment::missing_kvm().is_some() {
        return run_fails(Options::kvm(), Code::Ok, "").map(|_| ());
    }
    let initramfs = environment::path(environment::INITRAMFS)?;
    node::run(Options::kvm().initramfs(initramfs), |node| {
        let pod = node.busybox_pod("unpacked")?;
        let (status, _) = node.run_script(&pod, "main", "exit 3")?;
        assert_eq!(status.exit_code, 3);
        Ok(())
    })
}

#[test]
fn an_initramfs_that_is_not_one_is_refused() -> Result<()> {
    let folder = folder()?;
    let initramfs = folder.path().join("initramfs.cpio");
    fs::write(&initramfs, vec![0x5a; 64 * 1024])?;
    let options = Options::kvm().initramfs(&initramfs);
    run_fails(options, Code::FailedPrecondition, "initramfs")?;
    Ok(())
}

#[test]
fn an_initramfs_without_init_ends_the_start_at_once() -> Result<()> {
    let folder = folder()?;
    let root = folder.path().join("root");
    install(Path::new("/bin/true"), &root.join("bin/true"))?;
    let initramfs = pack(folder.path(), &root)?;
    ends_at_once(Options::kvm().initramfs(&initramfs), "panic")
}

#[test]
fn an_agent_that_exits_ends_the_start_at_once() -> Result<()> {
    let folder = folder()?;
    let initramfs = initramfs_of(folder.path(), Path::new("/bin/true"))?;
    ends_at_once(Options::kvm().initramfs(&initramfs), "panic")
}

#[test]
fn a_guest_that_triple_faults_is_told_apart() -> Result<()> {
    let folder = folder()?;
    let kernel = folder.path().join("vmlinux");
    fs::write(&kernel, kernel_of(TRIPLE_FAULT))?;
    ends_at_once(Options::kvm().kernel(&kernel), "triple fault")
}

#[test]
fn a_guest_that_kvm_cannot_run_is_told_apart() -> Result<()> {
    let folder = folder()?;
    let kernel = folder.path().join("vmlinux");
    fs::write(&kernel, kernel_of(RUN_WHAT_IS_NO_MEMORY))?;
    // Suberror 1: KVM has to emulate the instruction, and cannot even read it.
    ends_at_once(Options::kvm().kernel(&kernel), "(suberror 1, ")
}

/// The guest ends, which is noticed long before it would be given up.
fn ends_at_once(options: Options, message: &str) -> Result<()> {
    let options = options.vm("start_timeout_ms", 200_000);
    let took = run_fails(options, Code::Unavailable, message)?;
    ensure!(took < NOTICED, "noticed after {took:?}");
    Ok(())
}

#[test]
fn a_guest_that_never_answers_is_given_up_after_the_start_timeout() -> Result<()> {
    let folder = folder()?;
    // Busybox is the program that its name says: its `init` waits for children for ever.
    let initramfs = initramfs_of(folder.path(), Path::new("/bin/busybox"))?;
    let options = Options::kvm()
        .initramfs(&initramfs)
        .vm("start_timeout_ms", 20_000);
    let took = run_fails(options, Code::DeadlineExceeded, "20000 ms")?;
    ensure!(took >= Duration::from_secs(20), "given up after {took:?}");
    Ok(())
}

#[test]
fn an_agent_of_another_release_is_refused_and_both_versions_are_named() -> Result<()> {
    let folder = folder()?;
    let agent = PathBuf::from(env!("CARGO_BIN_EXE_isopod-test-agent"));
    let initramfs = initramfs_of(folder.path(), &agent)?;
    run_fails(
        Options::kvm().initramfs(&initramfs),
        Code::FailedPrecondition,
        "protocol version 99",
    )?;
    Ok(())
}

/// Machine code for 32-bit protected mode: `lidt` of six zero bytes at the end, then `ud2`. Without a
/// handler the fault cannot be delivered, and neither can the fault about that.
const TRIPLE_FAULT: &[u8] = &[
    0x0f, 0x01, 0x1d, 0x09, 0x00, 0x20, 0x00, 0x0f, 0x0b, 0, 0, 0, 0, 0, 0,
];

/// Machine code for 32-bit protected mode: `mov eax, 0xf8000000`, `jmp eax`. Nothing is at that
/// address, neither memory nor a device.
const RUN_WHAT_IS_NO_MEMORY: &[u8] = &[0xb8, 0x00, 0x00, 0x00, 0xf8, 0xff, 0xe0];

/// Where [`kernel_of`] loads the code.
const CODE_ADDRESS: u64 = 0x20_0000;

/// A kernel as small as the PVH boot protocol allows: an ELF header, a loaded segment, a note with
/// the entry point (Xen's public/elfnote.h, `XEN_ELFNOTE_PHYS32_ENTRY`).
fn kernel_of(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    let length = code.len() as u64;
    let mut note = Vec::new();
    for word in [4_u32, 8, 18] {
        note.extend(word.to_le_bytes());
    }
    note.extend(b"Xen\0");
    note.extend(CODE_ADDRESS.to_le_bytes());

    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // ET_EXEC, EM_X86_64, version 1.
    for half in [2_u16, 62, 1, 0] {
        file.extend(half.to_le_bytes());
    }
    // Entry, program headers, section headers; flags; sizes and counts.
    for double in [CODE_ADDRESS, 64, 0] {
        file.extend(double.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 2, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_LOAD, PT_NOTE: offset, two addresses, two sizes, alignment.
    for (kind, offset, address, size) in [
        (1_u32, HEADERS, CODE_ADDRESS, length),
        (4, HEADERS + length, 0, note.len() as u64),
    ] {
        file.extend(kind.to_le_bytes());
        file.extend(5_u32.to_le_bytes());
        for double in [offset, address, address, size, size, 1] {
            file.extend(double.to_le_bytes());
        }
    }
    [file.as_slice(), code, &note].concat()
}

/// An initramfs whose init is this program, with the libraries it loads.
fn initramfs_of(folder: &Path, program: &Path) -> Result<PathBuf> {
    let root = folder.join("root");
    for library in elf::libraries(program)? {
        install(&library, &root.join(library.strip_prefix("/")?))?;
    }
    install(program, &root.join("init"))?;
    pack(folder, &root)
}

fn install(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a folder")?)?;
    fs::copy(from, to).with_context(|| format!("copying {}", from.display()))?;
    Ok(())
}

fn pack(folder: &Path, root: &Path) -> Result<PathBuf> {
    let path = folder.join("initramfs.cpio");
    let names = Command::new("find")
        .arg(".")
        .current_dir(root)
        .output()?
        .stdout;
    let list = folder.join("names");
    fs::write(&list, names)?;
    let status = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc"])
        .current_dir(root)
        .stdin(fs::File::open(&list)?)
        .stdout(fs::File::create(&path)?)
        .stderr(Stdio::inherit())
        .status()?;
    ensure!(status.success(), "cpio failed");
    Ok(path)
}
