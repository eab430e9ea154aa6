//! Folders and files of the host, and images, as containers see them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use isopod_proto::cri::{
    ContainerConfig, ImageSpec, LinuxContainerConfig, LinuxContainerSecurityContext, Mount,
    MountPropagation,
};
use isopod_tests::log::{Stream, texts};
use isopod_tests::node::{
    self, Node, Options, assert_refused, container_config, image, pod_config, shell,
};
use isopod_tests::process::Process;
use tonic::Code;

/// A folder of the host for a test's volumes.
fn host_folder(node: &Node, name: &str) -> Result<PathBuf> {
    let path = node.folder().join("volumes").join(name);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn mount(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        ..Mount::default()
    }
}

fn read_only(mount: Mount) -> Mount {
    Mount {
        readonly: true,
        ..mount
    }
}

fn mounting(mut config: ContainerConfig, mounts: Vec<Mount>) -> ContainerConfig {
    config.mounts = mounts;
    config
}

fn text(node: &Node, id: &str, script: &str) -> Result<String> {
    Ok(String::from_utf8(node.exec(id, script)?)?.trim().to_owned())
}

#[test]
fn folders_and_files_of_the_host_are_one_with_those_in_the_container() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let data = host_folder(node, "data")?;
        let secret = host_folder(node, "secret")?;
        fs::write(secret.join("key"), "s3cret")?;
        let term = node.folder().join("volumes/termination-log");
        fs::write(&term, "")?;
        let hosts = node.folder().join("volumes/etc-hosts");
        fs::write(&hosts, "10.1.2.3 kubelet-wrote-this\n")?;

        let pod = node.busybox_pod("volumes")?;
        let mounts = vec![
            mount(&data, "/data"),
            read_only(mount(&secret, "/var/run/secret")),
            mount(&term, "/dev/termination-log"),
            mount(&hosts, "/etc/hosts"),
        ];
        let id = node.start(&pod, mounting(shell("main", "exec sleep 10000"), mounts))?;

        node.exec(
            &id,
            "echo inside > /data/new && chmod 640 /data/new && chown 33:1000 /data/new",
        )?;
        let stat = fs::metadata(data.join("new"))?;
        let seen = (stat.uid(), stat.gid(), stat.mode() & 0o7777, stat.len());
        assert_eq!(seen, (33, 1000, 0o640, 7));
        fs::write(data.join("new"), "changed outside")?;
        assert_eq!(text(node, &id, "cat /data/new")?, "changed outside");

        assert_eq!(text(node, &id, "cat /var/run/secret/key")?, "s3cret");
        let refused = node.exec_any(&id, "echo x > /var/run/secret/new")?;
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Read-only file system"));
        assert_eq!(fs::read_dir(&secret)?.count(), 1);

        node.exec(&id, "echo reason > /dev/termination-log")?;
        assert_eq!(fs::read(&term)?, b"reason\n");
        assert_eq!(
            text(node, &id, "cat /etc/hosts")?,
            "10.1.2.3 kubelet-wrote-this"
        );

        let status = node.cri().container_status(&id)?;
        assert_eq!(status.mounts.len(), 4);
        let secret_mount = &status.mounts[1];
        assert_eq!(secret_mount.host_path, secret.display().to_string());
        assert!(secret_mount.readonly);
        // What the VMM shares is not a mount of the host.
        let table = fs::read_to_string("/proc/self/mountinfo")?;
        assert!(!table.contains("volumes"), "{table}");
        Ok(())
    })
}

/// Writes a ConfigMap's content as the kubelet does, and swaps it in at once.
fn write_config_map(folder: &Path, version: &str) -> Result<()> {
    let data = folder.join(format!("..{version}"));
    fs::create_dir(&data)?;
    fs::write(data.join("setting"), version)?;
    symlink(format!("..{version}"), folder.join("..data_tmp"))?;
    fs::rename(folder.join("..data_tmp"), folder.join("..data"))?;
    if !folder.join("setting").exists() {
        symlink("..data/setting", folder.join("setting"))?;
    }
    Ok(())
}

#[test]
fn a_config_map_that_is_swapped_is_seen_at_once() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = host_folder(node, "config")?;
        write_config_map(&folder, "v1")?;
        let pod = node.busybox_pod("config")?;
        let mounts = vec![read_only(mount(&folder, "/config"))];
        let id = node.start(&pod, mounting(shell("main", "exec sleep 10000"), mounts))?;
        assert_eq!(text(node, &id, "cat /config/setting")?, "v1");
        for version in ["v2", "v3"] {
            write_config_map(&folder, version)?;
            assert_eq!(text(node, &id, "cat /config/setting")?, version);
        }
        fs::remove_dir_all(folder.join("..v1"))?;
        assert_eq!(
            text(node, &id, "ls -d /config/..v*")?,
            "/config/..v2\n/config/..v3"
        );
        Ok(())
    })
}

/// Prints what inotify(7) tells of the paths that it is given: path, mask in hexadecimal, name.
/// MODIFY is 2, CLOSE_WRITE 8, MOVED_TO 80, CREATE 100, DELETE 200.
pub(super) const WATCH: &str = r#"$| = 1; $fd = syscall 294, 0; open I, "<&=", $fd or die;
    for (@ARGV) { my $path = $_; $path{syscall 254, $fd, $path, 0x3ce} = $path } print "watching\n";
    while (sysread I, $events, 65536) { while (length $events) {
        ($watch, $mask, $cookie, $length) = unpack 'lLLL', $events;
        $name = unpack 'Z*', substr $events, 16, $length; substr($events, 0, 16 + $length) = '';
        printf "%s %x %s\n", $path{$watch}, $mask, $name } }"#;

#[test]
fn changes_on_the_host_raise_inotify_events_in_the_guest() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = host_folder(node, "watched")?;
        write_config_map(&folder, "v1")?;
        fs::write(folder.join("plain"), "1")?;
        let file = node.folder().join("volumes/one-file");
        fs::write(&file, "1")?;
        let pod = node.busybox_pod("watched")?;
        node.cri().pull(&image("perl"))?;
        let mut config = container_config("main", "perl", &["/usr/bin/perl", "-e", WATCH]);
        config.args = vec!["/config".into(), "/file".into()];
        let mounts = vec![
            read_only(mount(&folder, "/config")),
            read_only(mount(&file, "/file")),
        ];
        let id = node.start(&pod, mounting(config, mounts))?;
        node.wait_logged(&id, "watching")?;
        let seen = |event: &str| node.wait_logged(&id, &format!(" F {event}"));
        write_config_map(&folder, "v2")?;
        seen("/config 80 ..data\n")?;
        seen("/config 100 ..v2\n")?;
        assert_eq!(text(node, &id, "cat /config/setting")?, "v2");
        fs::write(folder.join("plain"), "22")?;
        seen("/config 2 plain\n")?;
        seen("/config 8 plain\n")?;
        fs::remove_dir_all(folder.join("..v1"))?;
        seen("/config 200 ..v1\n")?;
        fs::write(&file, "22")?;
        seen("/file 2 \n")?;
        // Another daemon goes on.
        node.kill_daemon();
        node.start_daemon()?;
        write_config_map(&folder, "v3")?;
        seen("/config 100 ..v3\n")?;
        // Nothing of this is the guest's doing, and all of it is what the host has.
        let names = "ls -A /config | sort | tr '\\n' ' '; cat /config/setting /config/plain";
        assert_eq!(
            text(node, &id, names)?,
            "..data ..v2 ..v3 plain setting v322"
        );
        assert_eq!(fs::read(folder.join("plain"))?, b"22");
        let refused = node.exec_any(&id, "touch /config/..data")?;
        assert_ne!(refused.exit_code, 0);
        Ok(())
    })
}

/// What is tried in a volume at `/v`, in this order; the script; and what it prints.
const LIKE_A_LOCAL_FILE_SYSTEM: &[(&str, &str, &str)] = &[
    (
        "append",
        "echo a > /v/log; echo b >> /v/log; cat /v/log",
        "a\nb",
    ),
    (
        "an open file without a name",
        "exec 3<>/v/gone; echo kept >&3; rm /v/gone; cat /proc/self/fd/3; ls /v/gone 2>/dev/null || echo no name",
        "kept\nno name",
    ),
    (
        "rename over",
        "echo 1 > /v/a; echo 2 > /v/b; mv /v/a /v/b; cat /v/b; ls /v/a 2>/dev/null || echo moved",
        "1\nmoved",
    ),
    (
        "hard link",
        "echo x > /v/h1; ln /v/h1 /v/h2; stat -c %h /v/h1; [ /v/h1 -ef /v/h2 ] && echo same",
        "2\nsame",
    ),
    (
        "symbolic link",
        "ln -s h1 /v/s; readlink /v/s; cat /v/s",
        "h1\nx",
    ),
    (
        "directories",
        "mkdir -p /v/d/e/f; rmdir /v/d 2>/dev/null || echo not empty; rm -r /v/d; ls -d /v/d 2>/dev/null || echo gone",
        "not empty\ngone",
    ),
    (
        "many files",
        "mkdir /v/many; for i in $(seq 300); do : > /v/many/$i; done; ls /v/many | wc -l",
        "300",
    ),
    (
        "truncate",
        "echo 12345 > /v/t; truncate -s 3 /v/t; cat /v/t; truncate -s 10000 /v/t; stat -c %s /v/t",
        "12310000",
    ),
    ("mode", "chmod 4751 /v/t; stat -c %a /v/t", "4751"),
    (
        "writing takes set-user-id away",
        "chown 1000 /v/t; chmod 4777 /v/t; su -s /bin/sh www-data -c 'echo x >> /v/t'; stat -c %a /v/t",
        "777",
    ),
    (
        "times",
        "touch -d '2020-01-02 03:04:05' /v/t; stat -c %Y /v/t",
        "1577934245",
    ),
    (
        "another user's file",
        "echo s > /v/private; chmod 600 /v/private; su -s /bin/sh app -c 'cat /v/private' 2>&1 || true",
        "cat: can't open '/v/private': Permission denied",
    ),
    (
        "a user's own file",
        "chmod 777 /v; su -s /bin/sh app -c 'touch /v/own'; stat -c %u:%g /v/own",
        "1000:1000",
    ),
    (
        "a pipe",
        "mkfifo /v/pipe; (echo through > /v/pipe &); cat /v/pipe",
        "through",
    ),
    (
        "execution",
        "cp /bin/busybox /v/busybox; /v/busybox echo executed",
        "executed",
    ),
    (
        "a large file",
        "dd if=/dev/zero of=/v/large bs=1M count=8 2>/dev/null; sync; md5sum < /v/large; stat -c %s /v/large",
        "96995b58d4cbf6aaa9041b4f00c7f6ae  -\n8388608",
    ),
    (
        "names",
        "touch '/v/a b' /v/ünï; for file in '/v/a b' /v/ü*; do echo \"$file\"; done",
        "/v/a b\n/v/ünï",
    ),
    (
        "statfs",
        "df -P /v | tail -n 1 | awk '{ print ($2 > 0) }'",
        "1",
    ),
];

#[test]
fn a_volume_behaves_like_a_local_file_system() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = host_folder(node, "posix")?;
        let pod = node.busybox_pod("posix")?;
        let mounts = vec![mount(&folder, "/v")];
        let id = node.start(&pod, mounting(shell("main", "exec sleep 10000"), mounts))?;
        for (what, script, expected) in LIKE_A_LOCAL_FILE_SYSTEM {
            assert_eq!(text(node, &id, script).context(*what)?, *expected, "{what}");
        }
        let owner = fs::metadata(folder.join("own"))?;
        assert_eq!((owner.uid(), owner.gid()), (1000, 1000));
        // No guest makes a way to the host's devices.
        let made = node.exec_any(&id, "mknod /v/sda b 8 0")?;
        assert_ne!(made.exit_code, 0);
        Ok(())
    })
}

#[test]
fn containers_of_a_pod_share_a_folder_and_a_part_of_it() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let shared = host_folder(node, "shared")?;
        fs::create_dir(shared.join("part"))?;
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o777))?;
        let pod = node.busybox_pod("shared")?;
        let sleeper = |name: &str| shell(name, "exec sleep 10000");
        let reader_mounts = vec![read_only(mount(&shared, "/in"))];
        let reader = node.start(&pod, mounting(sleeper("reader"), reader_mounts))?;
        let writer = node.start(
            &pod,
            mounting(sleeper("writer"), vec![mount(&shared, "/out")]),
        )?;
        let part_mounts = vec![mount(&shared.join("part"), "/sub/path")];
        let part = node.start(&pod, mounting(sleeper("part"), part_mounts))?;

        node.exec(&writer, "echo 1 > /out/part/file")?;
        assert_eq!(text(node, &reader, "cat /in/part/file")?, "1");
        assert_eq!(text(node, &part, "cat /sub/path/file")?, "1");
        let inode = text(node, &writer, "stat -c %i /out/part/file")?;
        assert_eq!(text(node, &part, "stat -c %i /sub/path/file")?, inode);
        assert_ne!(
            node.exec_any(&reader, "echo 2 > /in/part/file")?.exit_code,
            0
        );

        // The writer's end takes nothing from the others.
        node.cri().remove(&writer)?;
        assert_eq!(text(node, &reader, "cat /in/part/file")?, "1");
        node.exec(&part, "echo 3 > /sub/path/file")?;
        assert_eq!(fs::read(shared.join("part/file"))?, b"3\n");
        Ok(())
    })
}

#[test]
fn mounts_that_cannot_be_honoured_are_refused_by_name_and_leave_nothing() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = host_folder(node, "refused")?;
        let socket = folder.join("socket");
        let _listener = UnixListener::bind(&socket)?;
        let pod = node.busybox_pod("refused")?;
        let both_ways = Mount {
            propagation: MountPropagation::PropagationBidirectional.into(),
            ..mount(&folder, "/x")
        };
        let unknown_image = Mount {
            image: Some(ImageSpec {
                image: "not-pulled:1".into(),
                ..ImageSpec::default()
            }),
            container_path: "/x".into(),
            ..Mount::default()
        };
        for (bad, field) in [
            (mount(&folder.join("missing"), "/x"), "host_path"),
            (mount(&socket, "/x"), "host_path"),
            (mount(Path::new("/dev/null"), "/x"), "host_path"),
            (mount(&folder, "relative"), "container_path"),
            (both_ways, "propagation"),
            (unknown_image, "config.mounts.image"),
        ] {
            let config = mounting(shell("main", "true"), vec![mount(&folder, "/good"), bad]);
            let answer = node.cri().create(&pod, config, pod_config(node, "refused"));
            assert_refused(answer, Code::InvalidArgument, field);
        }
        assert_eq!(node.cri().containers(None)?, []);
        Ok(())
    })
}

#[test]
fn an_image_is_mounted_whole_or_in_part_and_read_only() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&image("nginx"))?;
        let pod = node.busybox_pod("image-volume")?;
        let of_image = |part: &str, container: &str| Mount {
            image: Some(ImageSpec {
                image: image("nginx"),
                ..ImageSpec::default()
            }),
            image_sub_path: part.to_owned(),
            container_path: container.to_owned(),
            ..Mount::default()
        };
        let mounts = vec![of_image("", "/image"), of_image("etc", "/part")];
        let id = node.start(&pod, mounting(shell("main", "exec sleep 10000"), mounts))?;
        node.exec(
            &id,
            "test -x /image/usr/sbin/nginx && cmp /image/etc/passwd /part/passwd",
        )?;
        let written = node.exec_any(&id, "touch /image/x")?;
        assert!(String::from_utf8_lossy(&written.stderr).contains("Read-only file system"));
        let bad = mounting(shell("bad", "true"), vec![of_image("no/such", "/image")]);
        let refused = node
            .cri()
            .create(&pod, bad, pod_config(node, "image-volume"));
        assert_refused(refused, Code::InvalidArgument, "no/such");
        node.cri().remove(&id)?;
        assert_eq!(
            text(
                node,
                &node.start(&pod, shell("after", "exec sleep 1000"))?,
                "ls /sys/block | grep -c vd"
            )?,
            "2"
        );
        Ok(())
    })
}

#[test]
fn a_container_with_a_hundred_mounts_leaves_nothing_open() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("hundred")?;
        let mut mounts = Vec::new();
        for number in 0..100 {
            let folder = host_folder(node, &format!("m{number}"))?;
            fs::write(folder.join("n"), format!("{number}\n"))?;
            mounts.push(mount(&folder, &format!("/data/{number}")));
        }
        let vmm = node.vmm(&pod)?.pid;
        let open = || Ok::<_, std::io::Error>(fs::read_dir(format!("/proc/{vmm}/fd"))?.count());
        // The first brings the device.
        let warm_up = mounting(shell("warm-up", "true"), vec![mounts[0].clone()]);
        let id = node.start(&pod, warm_up)?;
        node.wait_exited(&id)?;
        node.cri().remove(&id)?;
        let before = open()?;
        let script = "cat /data/*/n | wc -l; grep -c ' /data/' /proc/mounts";
        let id = node.start(&pod, mounting(shell("main", script), mounts))?;
        let status = node.wait_exited(&id)?;
        assert_eq!(status.exit_code, 0);
        assert_eq!(
            texts(&node.container_log(&id)?, Stream::Stdout),
            ["100", "100"]
        );
        node.cri().remove(&id)?;
        let after = open()?;
        assert!(
            after <= before + 2,
            "{before} descriptors before, {after} after"
        );
        assert!(Process::all().iter().any(|process| process.pid == vmm));
        Ok(())
    })
}

#[test]
fn only_mounts_that_propagate_from_the_host_appear_in_a_running_container() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = host_folder(node, "later")?;
        fs::create_dir(folder.join("sub"))?;
        let pod = node.busybox_pod("later")?;
        let following = Mount {
            propagation: MountPropagation::PropagationHostToContainer.into(),
            ..mount(&folder, "/following")
        };
        let mounts = vec![mount(&folder, "/private"), following];
        let id = node.start(&pod, mounting(shell("main", "exec sleep 10000"), mounts))?;
        let tmpfs = folder.join("sub");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(&tmpfs)
            .status()?;
        assert!(mounted.success());
        let check = || -> Result<()> {
            fs::write(tmpfs.join("file"), "x")?;
            assert_eq!(text(node, &id, "ls /following/sub")?, "file");
            assert_eq!(text(node, &id, "ls /private/sub")?, "");
            Ok(())
        };
        let checked = check();
        node.cri().remove(&id)?;
        let unmounted = std::process::Command::new("umount").arg(&tmpfs).status()?;
        assert!(
            unmounted.success(),
            "nobody keeps the host from unmounting it"
        );
        checked
    })
}

#[test]
fn what_is_mounted_in_a_read_only_folder_is_writable_unless_that_is_recursive() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = host_folder(node, "shallow")?;
        let inner = folder.join("inner");
        fs::create_dir(&inner)?;
        fs::write(folder.join("file"), "x")?;
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "tmpfs"])
            .arg(&inner)
            .status()?;
        assert!(mounted.success());
        let pod = node.busybox_pod("shallow")?;
        let recursive = Mount {
            recursive_read_only: true,
            ..read_only(mount(&folder, "/recursive"))
        };
        let mounts = vec![
            mount(&folder, "/rw"),
            read_only(mount(&folder, "/ro")),
            recursive,
        ];
        let id = node.start(&pod, mounting(shell("main", "exec sleep 10000"), mounts))?;
        // The same file is read-only or not by the way that leads to it, in whatever order they are
        // walked.
        let script = "cat /rw/file /ro/file /recursive/file
            echo y > /rw/file && echo no > /ro/file; echo no > /recursive/file
            cat /ro/file; touch /ro/new /recursive/inner/no; touch /ro/inner/new /rw/new; ls /rw /rw/inner";
        let script = format!("({script}) 2>&1");
        let answer = text(node, &id, &script)?;
        let refusals = answer.matches("Read-only file system").count();
        assert_eq!(refusals, 4, "{answer}");
        assert_eq!(fs::read_to_string(folder.join("file"))?, "y\n");
        assert!(inner.join("new").exists() && folder.join("new").exists());
        node.cri().remove(&id)?;
        let unmounted = std::process::Command::new("umount").arg(&inner).status()?;
        assert!(unmounted.success(), "nobody keeps the host from it");
        Ok(())
    })
}

#[test]
fn a_read_only_root_and_a_user_of_its_own_still_write_to_a_volume() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = host_folder(node, "scratch")?;
        std::os::unix::fs::chown(&folder, Some(1000), Some(2000))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o2770))?;
        let pod = node.busybox_pod("user")?;
        let mut config = mounting(
            shell("main", "exec sleep 10000"),
            vec![mount(&folder, "/scratch")],
        );
        config.linux = Some(LinuxContainerConfig {
            security_context: Some(LinuxContainerSecurityContext {
                run_as_user: Some(isopod_proto::cri::Int64Value { value: 33 }),
                // The pod's fsGroup, as the kubelet sends it.
                supplemental_groups: vec![2000],
                readonly_rootfs: true,
                ..LinuxContainerSecurityContext::default()
            }),
            ..LinuxContainerConfig::default()
        });
        let id = node.start(&pod, config)?;
        assert_ne!(node.exec_any(&id, "touch /x")?.exit_code, 0);
        node.exec(&id, "echo x > /scratch/file")?;
        let stat = fs::metadata(folder.join("file"))?;
        assert_eq!(
            (stat.uid(), stat.gid()),
            (33, 2000),
            "the folder's group is inherited"
        );
        Ok(())
    })
}
