//! Pods whose root is not the guest's (`hostUsers: false`).

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use isopod_proto::cri::{
    ContainerConfig, Device, IdMapping, ImageSpec, Int64Value, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig,
    UpdateContainerResourcesRequest, UserNamespace,
};
use isopod_tests::log::{Stream, texts};
use isopod_tests::node::{
    self, Node, Options, assert_refused, container_config, image, pod_config, shell,
};
use isopod_tests::streams::forward::{Forward, exchange};
use tonic::Code;

use crate::volumes::WATCH;

const FIRST_UID: u32 = 131_072;
const FIRST_GID: u32 = 262_144;
const LENGTH: u32 = 65_536;

fn range(host_id: u32) -> Vec<IdMapping> {
    vec![IdMapping {
        host_id,
        container_id: 0,
        length: LENGTH,
    }]
}

fn users() -> UserNamespace {
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: range(FIRST_UID),
        gids: range(FIRST_GID),
    }
}

fn options(users: UserNamespace) -> NamespaceOption {
    NamespaceOption {
        userns_options: Some(users),
        ..NamespaceOption::default()
    }
}

fn pod_with(node: &Node, name: &str, users: UserNamespace, privileged: bool) -> PodSandboxConfig {
    let security = LinuxSandboxSecurityContext {
        namespace_options: Some(options(users)),
        privileged,
        ..LinuxSandboxSecurityContext::default()
    };
    PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(security),
            sysctls: [("kernel.shmmni".to_owned(), "77".to_owned())].into(),
            ..LinuxPodSandboxConfig::default()
        }),
        ..pod_config(node, name)
    }
}

/// A pod with [`users`]; its id.
fn run_pod(node: &Node, name: &str) -> Result<String> {
    node.cri().pull(&image("busybox"))?;
    Ok(node.cri().run_pod(pod_with(node, name, users(), true))?)
}

/// A container of such a pod.
fn mapped(
    mut config: ContainerConfig,
    change: impl FnOnce(&mut LinuxContainerSecurityContext),
) -> ContainerConfig {
    let mut security = LinuxContainerSecurityContext {
        namespace_options: Some(options(users())),
        ..LinuxContainerSecurityContext::default()
    };
    change(&mut security);
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(security),
        ..LinuxContainerConfig::default()
    });
    config
}

fn mount(host: &Path, container: &str) -> Mount {
    Mount {
        host_path: host.display().to_string(),
        container_path: container.to_owned(),
        uid_mappings: range(FIRST_UID),
        gid_mappings: range(FIRST_GID),
        ..Mount::default()
    }
}

fn text(node: &Node, id: &str, script: &str) -> Result<String> {
    Ok(String::from_utf8(node.exec(id, script)?)?.trim().to_owned())
}

#[test]
fn root_of_a_pod_with_a_user_namespace_is_nobody_in_the_guest() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = run_pod(node, "users")?;
        let script =
            "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u:%g /bin /etc/hosts";
        let first = node.start(&pod, mapped(shell("first", script), |_| {}))?;
        assert_eq!(node.wait_exited(&first)?.exit_code, 0);
        let log = node.container_log(&first)?;
        let log = texts(&log, Stream::Stdout).join(" ");
        let log: Vec<_> = log.split_whitespace().collect();
        assert_eq!(
            log,
            [
                "0", "131072", "65536", "0", "262144", "65536", "0", "0:0", "0:0"
            ]
        );

        let script = "trap 'echo asked; exit 7' TERM; while :; do sleep 0.2; done";
        let id = node.start(&pod, mapped(shell("main", script), |_| {}))?;
        assert_eq!(
            text(
                node,
                &id,
                "cat /proc/self/uid_map /proc/1/uid_map | tr -s ' ' | uniq"
            )?,
            "0 131072 65536"
        );
        let written = "echo x > /new && chown 33:34 /new && stat -c %u:%g /new && rm -r /home && \
                       echo y >> /etc/group && ls -ld /etc/group | cut -c 1-10";
        assert_eq!(text(node, &id, written)?, "33:34\n-rw-r--r--");
        let kernels = "for d in proc dev dev/pts dev/shm dev/mqueue sys sys/fs/cgroup; do \
                       grep -q \" /$d \" /proc/mounts || echo no $d; done; \
                       touch /dev/shm/x /dev/mqueue/q && stat -c %u /dev/shm/x; \
                       cat /proc/sys/kernel/shmmni; cat /sys/class/net/lo/mtu; \
                       echo 1 2>/dev/null > /proc/sys/vm/drop_caches || echo kept; \
                       mknod /d b 1 1 2> /dev/null || echo none";
        assert_eq!(text(node, &id, kernels)?, "0\n77\n65536\nkept\nnone");
        // The guest's network is every user's.
        let serve = "nc -l -p 80 -e echo served & sleep 1; nc 127.0.0.1 80 < /dev/null";
        assert_eq!(text(node, &id, serve)?, "served");

        let stats = node.cri().container_stats(&id)?;
        let memory = stats.memory.and_then(|memory| memory.working_set_bytes);
        assert!(memory.context("memory")?.value > 0);
        let status = node.cri().pod_status(&pod)?.status.context("status")?;
        let namespaces = status.linux.and_then(|linux| linux.namespaces);
        let shown = namespaces.and_then(|namespaces| namespaces.options);
        assert_eq!(shown.and_then(|shown| shown.userns_options), Some(users()));

        // The daemon knows it all after a restart.
        node.kill_daemon();
        node.start_daemon()?;
        let late = node.start(
            &pod,
            mapped(shell("late", "cat /proc/self/uid_map"), |_| {}),
        )?;
        assert_eq!(node.wait_exited(&late)?.exit_code, 0);
        let log = node.container_log(&late)?;
        assert!(texts(&log, Stream::Stdout)[0].contains("131072"));
        node.cri().stop(&id, 30)?;
        assert_eq!(node.wait_exited(&id)?.exit_code, 7);
        Ok(())
    })
}

#[test]
fn mapped_volumes_have_the_same_ids_on_the_host_and_in_the_container() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = node.folder().join("volumes/data");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("roots"), "root's")?;
        fs::write(folder.join("webs"), "web's")?;
        chown(folder.join("webs"), Some(33), Some(34))?;
        // As the kubelet prepares a volume for an fsGroup.
        let shared = node.folder().join("volumes/shared");
        fs::create_dir(&shared)?;
        chown(&shared, None, Some(1234))?;
        fs::set_permissions(
            &shared,
            std::os::unix::fs::PermissionsExt::from_mode(0o2775),
        )?;
        let file = node.folder().join("volumes/termination-log");
        fs::write(&file, "")?;

        let pod = run_pod(node, "volumes")?;
        let mut config = mapped(shell("main", "exec sleep 10000"), |_| {});
        let plain = Mount {
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            ..mount(&folder, "/plain")
        };
        let of_image = Mount {
            host_path: String::new(),
            image: Some(ImageSpec {
                image: image("busybox"),
                ..ImageSpec::default()
            }),
            image_sub_path: "bin".to_owned(),
            ..mount(&folder, "/image")
        };
        config.mounts = vec![
            mount(&folder, "/data"),
            mount(&file, "/dev/termination-log"),
            plain,
            of_image,
        ];
        let id = node.start(&pod, config)?;
        let seen = text(
            node,
            &id,
            "stat -c %u:%g /data/roots /data/webs /plain/roots /image/busybox",
        )?;
        assert_eq!(seen, "0:0\n33:34\n65534:65534\n0:0");
        let write = "cd /data && cat webs && echo new > new && mkdir d && chown 7:8 d && ln -s x l && \
                     mv new d/moved && ln d/moved hard && echo done > /dev/termination-log && \
                     touch /plain/denied 2> /dev/null || echo; echo denied";
        assert!(text(node, &id, write)?.ends_with("denied"));
        let owner = |path: &str| -> Result<(u32, u32)> {
            let metadata = fs::symlink_metadata(folder.join(path))?;
            Ok((metadata.uid(), metadata.gid()))
        };
        assert_eq!(owner("d/moved")?, (0, 0));
        assert_eq!(owner("hard")?, (0, 0));
        assert_eq!(owner("l")?, (0, 0));
        assert_eq!(owner("d")?, (7, 8));
        assert!(!folder.join("denied").exists());
        assert_eq!(fs::read(&file)?, b"done\n");
        // What changes on the host is seen, with its owner.
        chown(folder.join("webs"), Some(40), Some(41))?;
        assert_eq!(text(node, &id, "stat -c %u:%g /data/webs")?, "40:41");
        let status = node.cri().container_status(&id)?;
        assert_eq!(status.mounts[0].uid_mappings, range(FIRST_UID));
        assert_eq!(status.mounts[0].gid_mappings, range(FIRST_GID));
        assert!(status.mounts[2].uid_mappings.is_empty());

        // A user in the group that owns a volume, as `fsGroup` makes it.
        let web = |security: &mut LinuxContainerSecurityContext| {
            security.run_as_user = Some(Int64Value { value: 33 });
            security.supplemental_groups = vec![1234];
        };
        let script = "id -G; touch /shared/made && stat -c %u:%g /shared/made; touch /data/no";
        let mut config = mapped(shell("web", script), web);
        config.mounts = vec![mount(&shared, "/shared"), mount(&folder, "/data")];
        let id = node.start(&pod, config)?;
        assert_eq!(node.wait_exited(&id)?.exit_code, 1);
        let log = node.container_log(&id)?;
        let groups = texts(&log, Stream::Stdout).concat();
        assert!(groups.contains("1234"), "{groups}");
        assert!(groups.contains("33:1234"), "{groups}");
        assert_eq!(fs::metadata(shared.join("made"))?.uid(), 33);
        Ok(())
    })
}

#[test]
fn changes_of_a_mapped_volume_raise_inotify_events() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let folder = node.folder().join("volumes/config");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("plain"), "1")?;
        let pod = run_pod(node, "watched")?;
        node.cri().pull(&image("perl"))?;
        let config = container_config("main", "perl", &["/usr/bin/perl", "-e", WATCH]);
        let mut config = mapped(config, |_| {});
        config.args = vec!["/config".into()];
        config.mounts = vec![Mount {
            readonly: true,
            ..mount(&folder, "/config")
        }];
        let id = node.start(&pod, config)?;
        node.wait_logged(&id, "watching")?;
        fs::write(folder.join("plain"), "22")?;
        node.wait_logged(&id, " F /config 2 plain\n")?;
        fs::write(folder.join("new"), "")?;
        node.wait_logged(&id, " F /config 100 new\n")?;
        assert_eq!(text(node, &id, "stat -c %u:%g /config/new")?, "0:0");
        Ok(())
    })
}

#[test]
fn containers_of_the_pod_share_its_users_and_a_privileged_one_has_power_over_no_more() -> Result<()>
{
    node::run(Options::kvm(), |node| {
        let pod = run_pod(node, "shared")?;
        let first = node.start(
            &pod,
            mapped(
                shell("first", "echo 1 > /dev/shm/note; exec sleep 1234"),
                |security| {
                    security.run_as_user = Some(Int64Value { value: 33 });
                },
            ),
        )?;
        let mut config = mapped(shell("second", "exec sleep 4321"), |security| {
            security.privileged = true;
        });
        config.tty = true;
        let second = node.start(&pod, config)?;
        assert_eq!(text(node, &second, "stat -c %u /dev/shm/note")?, "33");
        // Both have the pod's pids; root may signal what belongs to the namespace.
        assert_eq!(
            text(node, &second, "ps -o user,args | grep -c '[s]leep 1234'")?,
            "1"
        );
        assert_eq!(
            text(
                node,
                &second,
                "readlink /proc/1/ns/user; readlink /proc/self/ns/user"
            )?
            .lines()
            .collect::<std::collections::HashSet<_>>()
            .len(),
            1
        );
        // Every capability, and none that counts for the guest.
        let tried = "grep -c 'CapEff:.*[1-9a-f]' /proc/self/status; hostname other && hostname; \
                     mkdir /made && mount -t tmpfs none /made && echo mounted; \
                     echo b 2> /dev/null > /proc/sysrq-trigger || echo no reboot; \
                     (echo 1 > /sys/kernel/mm/ksm/run) 2> /dev/null || echo no ksm; \
                     ls /proc/1/root/bin 2> /dev/null | wc -l";
        assert_eq!(
            text(node, &second, tried)?,
            "1\nother\nmounted\nno reboot\nno ksm\n0"
        );
        node.exec(
            &second,
            "kill -9 $(ps -o pid,args | awk '/[s]leep 1234/ { print $1 }')",
        )?;
        assert_eq!(node.wait_exited(&first)?.exit_code, 137);
        node.cri().stop_pod(&pod)?;
        node.cri().remove_pod(&pod)?;
        Ok(())
    })
}

#[test]
fn user_namespaces_that_cannot_be_are_refused_by_name() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let path = "config.linux.security_context.namespace_options.userns_options";
        let pod_refused = |change: &dyn Fn(&mut UserNamespace), field: &str| {
            let mut wrong = users();
            change(&mut wrong);
            let config = pod_with(node, "refused", wrong, false);
            let answer = node.cri().run_pod(config);
            assert_refused(answer, Code::InvalidArgument, &format!("{path}.{field}"));
        };
        pod_refused(&|users| users.uids.clear(), "uids");
        pod_refused(&|users| users.gids.push(users.gids[0]), "gids");
        pod_refused(&|users| users.uids[0].container_id = 1, "uids");
        pod_refused(&|users| users.gids[0].host_id = 0, "gids");
        pod_refused(&|users| users.uids[0].length = u32::MAX, "uids");
        pod_refused(&|users| users.gids[0].length = 100, "gids");
        pod_refused(
            &|users| users.mode = NamespaceMode::Container.into(),
            "mode",
        );
        pod_refused(&|users| users.mode = NamespaceMode::Target.into(), "mode");
        pod_refused(&|users| users.mode = NamespaceMode::Node.into(), "uids");
        pod_refused(&|users| users.mode = 99, "mode");

        let pod = run_pod(node, "users")?;
        let refused = |config: ContainerConfig, field: &str| {
            let answer = node.cri().create(&pod, config, pod_config(node, "users"));
            assert_refused(answer, Code::InvalidArgument, field);
        };
        refused(shell("none", "true"), path);
        let mut other = users();
        other.uids[0].host_id += 1;
        let others = |security: &mut LinuxContainerSecurityContext| {
            security.namespace_options = Some(options(other));
        };
        refused(mapped(shell("other", "true"), others), path);
        let beyond = |security: &mut LinuxContainerSecurityContext| {
            security.run_as_user = Some(Int64Value { value: 65_536 });
        };
        refused(mapped(shell("beyond", "true"), beyond), "run_as_user");
        let mut config = mapped(shell("mount", "true"), |_| {});
        let mut wrong = mount(node.folder(), "/data");
        wrong.gid_mappings[0].host_id = 1;
        config.mounts = vec![wrong];
        refused(config, "config.mounts.gidMappings");
        let mut config = mapped(shell("device", "true"), |_| {});
        config.devices = vec![Device {
            host_path: "/dev/fuse".to_owned(),
            container_path: "/dev/fuse".to_owned(),
            permissions: "rw".to_owned(),
        }];
        refused(config, "config.devices");
        // Nothing of it is left, and what is right still runs.
        let id = node.start(&pod, mapped(shell("right", "id -u"), |_| {}))?;
        assert_eq!(node.wait_exited(&id)?.exit_code, 0);
        Ok(())
    })
}

#[test]
fn streams_limits_and_images_as_memory_work_with_users_of_the_pods_own() -> Result<()> {
    const MIB: i64 = 1 << 20;
    node::run(Options::kvm().vm("image_device", "virtio-pmem"), |node| {
        let pod = run_pod(node, "all")?;
        let script = "while read line; do echo got $line by $(id -u); done";
        let mut config = mapped(shell("attached", script), |_| {});
        (config.stdin, config.stdin_once) = (true, true);
        let id = node.create(&pod, config)?;
        let mut attach = node
            .crictl()?
            .command(&["attach", "-i", &id])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = attach.stdin.take().context("it is piped")?;
        node.cri().start(&id)?;
        stdin.write_all(b"one\n")?;
        node.wait_logged(&id, "got one by 0")?;
        drop(stdin);
        assert_eq!(attach.wait_with_output()?.stdout, b"got one by 0\n");
        assert_eq!(node.wait_exited(&id)?.exit_code, 0);

        let id = node.start(&pod, mapped(shell("main", "exec sleep 10000"), |_| {}))?;
        // The image is memory, read in place, and its owners are the pod's.
        let seen = text(
            node,
            &id,
            "stat -c %u:%g /bin/busybox; cat /proc/self/uid_map",
        )?;
        let seen: Vec<_> = seen.split_whitespace().collect();
        assert_eq!(seen, ["0:0", "0", "131072", "65536"]);
        let images = text(node, &id, "ls /sys/block | grep -c pmem")?;
        assert_eq!(images, "3", "one for each container, and the agent's");
        node.exec(
            &id,
            "mkdir /www && echo page > /www/x && httpd -p 127.0.0.1:8080 -h /www",
        )?;
        let forward = Forward::start(node, "spdy", &pod, 8080)?;
        let answer = exchange(forward.connect()?, b"GET /x HTTP/1.0\r\n\r\n")?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.ends_with("\r\n\r\npage\n"), "{answer}");

        for mib in [96, 300, 48] {
            let request = UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(LinuxContainerResources {
                    memory_limit_in_bytes: mib * MIB,
                    ..LinuxContainerResources::default()
                }),
                ..UpdateContainerResourcesRequest::default()
            };
            node.cri()
                .runtime(async |mut cri| cri.update_container_resources(request).await)?;
            let max = text(node, &id, "cat /sys/fs/cgroup/memory.max")?;
            assert_eq!(max, (mib * MIB).to_string());
        }
        Ok(())
    })
}
