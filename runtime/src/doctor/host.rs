//! What the host gives beside KVM: folders, tools, memory, kernel features, the network.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use super::{Check, Host};
use crate::chain::chain;
use crate::config::CniConfig;
use crate::network::{self, NetworkError};

/// A folder's free space: below the first number, in bytes, no pod can be made; below the second
/// it is time to worry.
pub(super) type FreeSpace = (u64, u64);

/// For images and the pods' writable disks.
pub(super) const ROOT_DIR_FREE: FreeSpace = (256 << 20, 4 << 30);

/// For sockets and logs of the VMMs.
pub(super) const STATE_DIR_FREE: FreeSpace = (1 << 20, 16 << 20);

/// Where mkfs is beside `PATH`.
const SBIN: [&str; 2] = ["/usr/sbin", "/sbin"];

/// The program that makes the pods' writable disks.
pub(super) fn mkfs() -> Check {
    let path = std::env::var_os("PATH").unwrap_or_default();
    match find_program("mkfs.ext4", &path) {
        Some(program) => Check::ok("mkfs.ext4", program.display().to_string()),
        None => Check::fail(
            "mkfs.ext4",
            "is not in PATH, /usr/sbin or /sbin",
            "install e2fsprogs",
        ),
    }
}

fn find_program(name: &str, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .chain(SBIN.map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file() && access(program, AccessFlags::X_OK).is_ok())
}

/// Whether a folder, or the one that it will be made in, can be written to and has room.
pub(super) fn folder(name: &'static str, path: &Path, (least, comfortable): FreeSpace) -> Check {
    let Some(there) = path.ancestors().find(|folder| folder.exists()) else {
        return Check::fail(
            name,
            format!("{} is no path", path.display()),
            "set another",
        );
    };
    let advice = format!("set {name} to a folder that root can write to");
    if !there.is_dir() {
        return Check::fail(name, format!("{} is no folder", there.display()), advice);
    }
    if let Err(error) = access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Check::fail(
            name,
            format!("{}: {}", there.display(), error.desc()),
            advice,
        );
    }
    let free = match statvfs(there) {
        Ok(stat) => stat.blocks_available().saturating_mul(stat.fragment_size()),
        Err(error) => {
            return Check::fail(
                name,
                format!("{}: {}", there.display(), error.desc()),
                advice,
            );
        }
    };
    let found = format!("{} can be written, {} MiB free", path.display(), free >> 20);
    let advice = format!("make room: at least {} MiB", comfortable >> 20);
    if free < least {
        Check::fail(name, found, advice)
    } else if free < comfortable {
        Check::warn(name, found, advice)
    } else {
        Check::ok(name, found)
    }
}

/// Whether a pod that sets no limit has the memory that it is given.
pub(super) fn memory(host: &Host, pod_mib: u32) -> Check {
    const NAME: &str = "memory";
    let text = fs::read_to_string(host.path("/proc/meminfo")).unwrap_or_default();
    let available = text.lines().find_map(|line| {
        let kib = line
            .strip_prefix("MemAvailable:")?
            .trim()
            .strip_suffix("kB")?;
        kib.trim().parse::<u64>().ok()
    });
    match available {
        None => Check::warn(
            NAME,
            "/proc/meminfo does not say what is available",
            "mount /proc",
        ),
        Some(kib) if kib >> 10 < u64::from(pod_mib) => Check::warn(
            NAME,
            format!("{} MiB available, and a pod gets {pod_mib} MiB", kib >> 10),
            "free some, or set vm.memory_mib lower",
        ),
        Some(kib) => Check::ok(NAME, format!("{} MiB available", kib >> 10)),
    }
}

/// cgroup v2, by which a node accounts for its pods.
pub(super) fn cgroup(host: &Host) -> Check {
    const NAME: &str = "cgroup v2";
    match fs::read_to_string(host.path("/sys/fs/cgroup/cgroup.controllers")) {
        Ok(controllers) => Check::ok(NAME, format!("with {}", controllers.trim())),
        Err(_) => Check::warn(
            NAME,
            "is not mounted on /sys/fs/cgroup",
            "boot with systemd.unified_cgroup_hierarchy=1; the kubelet needs it",
        ),
    }
}

/// The overlay file system. Pods do not need the host's: their guests have their own.
pub(super) fn overlay(host: &Host) -> Check {
    const NAME: &str = "overlay";
    let known = fs::read_to_string(host.path("/proc/filesystems")).unwrap_or_default();
    if known.split_whitespace().any(|name| name == "overlay") {
        return Check::ok(NAME, "the host's kernel knows it; guests have their own");
    }
    Check::warn(
        NAME,
        "the host's kernel does not know it; pods in microVMs have their own",
        "modprobe overlay, for other runtimes on this node",
    )
}

/// The device for the pods' network interfaces.
pub(super) fn tun(host: &Host) -> Check {
    const NAME: &str = "tun";
    if host.path("/dev/net/tun").exists() {
        return Check::ok(NAME, "/dev/net/tun");
    }
    Check::warn(
        NAME,
        "/dev/net/tun is missing: pods with a network do not start",
        "modprobe tun; in a container, pass the device",
    )
}

/// The pods' network, which plugins make as somebody configured it.
pub(super) fn cni(host: &Host, config: &CniConfig) -> Check {
    const NAME: &str = "cni";
    if !config.enabled {
        let found = "cni.enabled is false: pods have a loopback interface only";
        return Check::ok(NAME, found);
    }
    let inside = |dirs: &[PathBuf]| dirs.iter().map(|dir| host.path(dir)).collect();
    let config = CniConfig {
        config_dirs: inside(&config.config_dirs),
        plugin_dirs: inside(&config.plugin_dirs),
        ..config.clone()
    };
    match network::find(&config) {
        Ok(name) => Check::ok(NAME, format!("pods join the network {name:?}")),
        Err(error @ NetworkError::Plugin(_)) => Check::warn(
            NAME,
            format!("no pod starts: {}", chain(&error)),
            "install containernetworking-plugins, or the network's own",
        ),
        Err(error) => Check::warn(
            NAME,
            format!("no pod starts: {}", chain(&error)),
            "install a network for the cluster, write a conflist, or set cni.enabled = false",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let host = Host {
            root: root.path().into(),
        };
        (root, host)
    }

    const NETWORK: &str = r#"{"name":"pods","cniVersion":"1.0.0","type":"bridge"}"#;

    #[test]
    fn bare_host_warns_about_what_pods_can_do_without() {
        let (_root, host) = host(&[]);
        for check in [
            cgroup(&host),
            overlay(&host),
            tun(&host),
            cni(&host, &CniConfig::default()),
            memory(&host, 1),
        ] {
            assert_eq!(check.verdict, Verdict::Warn, "{check:?}");
            assert!(!check.advice.is_empty());
        }
    }

    #[test]
    fn complete_host_is_fine() {
        let (_root, host) = host(&[
            ("sys/fs/cgroup/cgroup.controllers", "cpu memory\n"),
            ("proc/filesystems", "nodev\ttmpfs\nnodev\toverlay\n"),
            (
                "proc/meminfo",
                "MemTotal: 8 kB\nMemAvailable:   1048576 kB\n",
            ),
            ("dev/net/tun", ""),
            ("etc/cni/net.d/10-bridge.conflist", NETWORK),
            ("usr/lib/cni/bridge", ""),
        ]);
        let program = host.path("/usr/lib/cni/bridge");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(program, executable).unwrap();
        for check in [
            cgroup(&host),
            overlay(&host),
            tun(&host),
            cni(&host, &CniConfig::default()),
            memory(&host, 1024),
        ] {
            assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        }
        assert_eq!(memory(&host, 1025).verdict, Verdict::Warn);
    }

    #[test]
    fn network_without_plugins_names_the_package() {
        let (_root, host) = host(&[("etc/cni/net.d/10-bridge.conflist", NETWORK)]);
        assert!(
            cni(&host, &CniConfig::default())
                .advice
                .contains("containernetworking-plugins")
        );
    }

    #[test]
    fn host_whose_pods_have_no_network_needs_none() {
        let (_root, host) = host(&[]);
        let config = CniConfig {
            enabled: false,
            ..Default::default()
        };
        assert_eq!(cni(&host, &config).verdict, Verdict::Ok);
    }

    #[test]
    fn folder_that_is_not_there_yet_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let check = folder("root_dir", &dir.path().join("a/b"), (0, 0));
        assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
        assert!(!dir.path().join("a").exists());
    }

    #[test]
    fn folder_without_room_fails_and_with_little_warns() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            folder("root_dir", dir.path(), (u64::MAX, u64::MAX)).verdict,
            Verdict::Fail
        );
        assert_eq!(
            folder("root_dir", dir.path(), (0, u64::MAX)).verdict,
            Verdict::Warn
        );
    }

    #[test]
    fn file_in_the_folders_place_fails() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let check = folder("state_dir", &file.path().join("x"), (0, 0));
        assert_eq!(check.verdict, Verdict::Fail);
        assert!(check.advice.contains("state_dir"), "{check:?}");
    }

    #[test]
    fn program_is_found_in_path_and_must_be_executable() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("isopod-no-such-mkfs");
        fs::write(&program, "").unwrap();
        let find = || find_program("isopod-no-such-mkfs", dir.path().as_os_str());
        assert_eq!(find(), None);
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&program, permissions).unwrap();
        assert_eq!(find(), Some(program.clone()));
    }
}
