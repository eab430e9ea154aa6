//! What a container may not do.

use std::fs;

use anyhow::Result;
use isopod_proto::cri::security_profile::ProfileType;
use isopod_proto::cri::{
    Capability, ContainerConfig, Int64Value, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, SecurityProfile,
    SupplementalGroupsPolicy,
};
use isopod_tests::node::{self, Node, Options, assert_refused, pod_config, shell};
use tonic::Code;

/// In a pid namespace of its own, where the container's process is number 1, unless it asks for
/// another.
fn with_security(
    mut config: ContainerConfig,
    mut security: LinuxContainerSecurityContext,
) -> ContainerConfig {
    security
        .namespace_options
        .get_or_insert_with(|| NamespaceOption {
            pid: NamespaceMode::Container.into(),
            ..NamespaceOption::default()
        });
    config.linux = Some(LinuxContainerConfig {
        security_context: Some(security),
        ..LinuxContainerConfig::default()
    });
    config
}

fn seccomp(profile: ProfileType) -> LinuxContainerSecurityContext {
    LinuxContainerSecurityContext {
        seccomp: Some(SecurityProfile {
            profile_type: profile.into(),
            ..SecurityProfile::default()
        }),
        ..LinuxContainerSecurityContext::default()
    }
}

fn exec_text(node: &Node, id: &str, script: &str) -> Result<String> {
    Ok(String::from_utf8(node.exec(id, script)?)?.trim().to_owned())
}

#[test]
fn the_default_seccomp_profile_is_enforced_in_containers_and_execs() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("seccomp")?;
        let config = with_security(
            shell("default", "sleep 10000"),
            seccomp(ProfileType::RuntimeDefault),
        );
        let id = node.start(&pod, config)?;
        // 2: a filter (proc(5), Seccomp).
        assert_eq!(
            exec_text(node, &id, "grep ^Seccomp: /proc/1/status | tr -dc 0-9")?,
            "2"
        );
        assert_eq!(
            exec_text(node, &id, "grep ^Seccomp: /proc/self/status | tr -dc 0-9")?,
            "2"
        );
        // Any process may make a user namespace, unless the profile forbids it.
        let made = node.exec_any(&id, "unshare -U true")?;
        assert_ne!(made.exit_code, 0);
        assert!(String::from_utf8_lossy(&made.stderr).contains("Operation not permitted"));

        let config = with_security(
            shell("unconfined", "sleep 10000"),
            seccomp(ProfileType::Unconfined),
        );
        let id = node.start(&pod, config)?;
        assert_eq!(
            exec_text(node, &id, "grep ^Seccomp: /proc/1/status | tr -dc 0-9")?,
            "0"
        );
        node.exec(&id, "unshare -U true")?;
        Ok(())
    })
}

#[test]
fn capabilities_are_the_default_ones_plus_and_minus_what_was_asked_for() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("caps")?;
        let effective = |id: &str| -> Result<u64> {
            let text = exec_text(node, id, "grep ^CapEff /proc/1/status | cut -f 2")?;
            Ok(u64::from_str_radix(&text, 16)?)
        };
        // linux/capability.h
        let (chown, net_raw, sys_admin) = (1_u64 << 0, 1_u64 << 13, 1_u64 << 21);
        let id = node.start(
            &pod,
            with_security(
                shell("plain", "sleep 10000"),
                LinuxContainerSecurityContext::default(),
            ),
        )?;
        let plain = effective(&id)?;
        assert_ne!(plain & chown, 0);
        assert_eq!(plain & sys_admin, 0);

        let capabilities = Capability {
            add_capabilities: vec!["SYS_ADMIN".into()],
            drop_capabilities: vec!["CHOWN".into(), "NET_RAW".into()],
            ..Capability::default()
        };
        let security = LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            ..LinuxContainerSecurityContext::default()
        };
        let id = node.start(
            &pod,
            with_security(shell("changed", "sleep 10000"), security),
        )?;
        let changed = effective(&id)?;
        assert_eq!(changed, (plain | sys_admin) & !chown & !net_raw);
        Ok(())
    })
}

#[test]
fn a_read_only_root_cannot_be_written_and_masked_paths_not_read() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("read-only")?;
        let security = LinuxContainerSecurityContext {
            readonly_rootfs: true,
            masked_paths: vec!["/proc/kcore".into()],
            readonly_paths: vec!["/proc/sys".into()],
            ..LinuxContainerSecurityContext::default()
        };
        let id = node.start(&pod, with_security(shell("c", "sleep 10000"), security))?;
        let write = node.exec_any(&id, "echo > /file")?;
        assert!(String::from_utf8_lossy(&write.stderr).contains("Read-only file system"));
        let sysctl = node.exec_any(&id, "echo 1 > /proc/sys/vm/panic_on_oom")?;
        assert!(String::from_utf8_lossy(&sysctl.stderr).contains("Read-only file system"));
        assert_eq!(exec_text(node, &id, "head -c 1 /proc/kcore | wc -c")?, "0");
        Ok(())
    })
}

#[test]
fn writes_of_one_container_are_not_seen_by_another_of_the_same_image() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("apart")?;
        let one = node.start(&pod, shell("one", "sleep 10000"))?;
        let two = node.start(&pod, shell("two", "sleep 10000"))?;
        node.exec(&one, "echo mine > /etc/passwd; rm /bin/vi; mkdir /made")?;
        assert_eq!(
            exec_text(node, &two, "grep -c root /etc/passwd; ls /bin/vi")?,
            "1\n/bin/vi"
        );
        assert_ne!(node.exec_any(&two, "ls /made")?.exit_code, 0);
        assert_eq!(exec_text(node, &one, "cat /etc/passwd")?, "mine");
        Ok(())
    })
}

#[test]
fn a_privileged_container_needs_a_privileged_pod() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("plain")?;
        let security = LinuxContainerSecurityContext {
            privileged: true,
            ..LinuxContainerSecurityContext::default()
        };
        let config = with_security(shell("c", "true"), security);
        let created = node.cri().create(&pod, config, pod_config(node, "plain"));
        assert_refused(created, Code::InvalidArgument, "privileged");
        Ok(())
    })
}

#[test]
fn the_vmm_holds_no_descriptor_of_the_daemon_and_no_other_sandboxes_files() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let one = node.busybox_pod("one")?;
        let two = node.cri().run_pod(pod_config(node, "two"))?;
        for (own, other) in [(&one, &two), (&two, &one)] {
            let vmm = node.vmm(own)?;
            for (number, target) in isopod_tests::process::Process::descriptors(vmm.pid) {
                let target = target.display().to_string();
                assert!(
                    !target.contains(other.as_str()),
                    "descriptor {number}: {target}"
                );
                assert!(
                    !target.ends_with("isopod.sock") && !target.ends_with("daemon.log"),
                    "{target}"
                );
            }
        }
        Ok(())
    })
}

fn user_of(security: LinuxContainerSecurityContext) -> ContainerConfig {
    with_security(shell("user", "id; exec sleep 10000"), security)
}

#[test]
fn users_and_groups_are_those_of_the_image_and_those_that_were_asked_for() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("users")?;
        let number = |value| Some(Int64Value { value });
        let none = LinuxContainerSecurityContext::default;
        let cases = [
            // By name, with the groups that /etc/group lists.
            (
                LinuxContainerSecurityContext {
                    run_as_username: "app".into(),
                    supplemental_groups: vec![4000],
                    ..none()
                },
                "1000 1000 1000 2000 4000",
            ),
            // Without them.
            (
                LinuxContainerSecurityContext {
                    run_as_user: number(1000),
                    supplemental_groups: vec![4000],
                    supplemental_groups_policy: SupplementalGroupsPolicy::Strict.into(),
                    ..none()
                },
                "1000 1000 1000 4000",
            ),
            (
                LinuxContainerSecurityContext {
                    run_as_user: number(5),
                    run_as_group: number(6),
                    ..none()
                },
                "5 6 6",
            ),
        ];
        for (attempt, (security, expected)) in (0..).zip(cases) {
            let mut config = user_of(security);
            config
                .metadata
                .as_mut()
                .expect("every test container has it")
                .attempt = attempt;
            let id = node.start(&pod, config)?;
            let seen = exec_text(node, &id, "echo $(id -u) $(id -g) $(id -G)")?;
            assert_eq!(seen, expected);
            let status = node.cri().container_status(&id)?;
            let user = status
                .user
                .and_then(|user| user.linux)
                .expect("it says who runs");
            let groups = user.supplemental_groups.iter().map(ToString::to_string);
            let told = [user.uid.to_string(), user.gid.to_string()]
                .into_iter()
                .chain(groups);
            assert_eq!(told.collect::<Vec<_>>().join(" "), expected);
        }
        let mut unknown = user_of(LinuxContainerSecurityContext {
            run_as_username: "nobody-knows-me".into(),
            ..none()
        });
        unknown
            .metadata
            .as_mut()
            .expect("every test container has it")
            .attempt = 100;
        let answer = node.cri().create(&pod, unknown, pod_config(node, "users"));
        assert_refused(answer, Code::InvalidArgument, "nobody-knows-me");
        Ok(())
    })
}

#[test]
fn sysctls_are_the_pods_own_and_unknown_ones_are_named() -> Result<()> {
    node::run(Options::kvm(), |node| {
        node.cri().pull(&isopod_tests::node::image("busybox"))?;
        let with = |name: &str, key: &str, value: &str| {
            let mut config = pod_config(node, name);
            config.linux = Some(LinuxPodSandboxConfig {
                sysctls: [(key.to_owned(), value.to_owned())].into(),
                ..LinuxPodSandboxConfig::default()
            });
            config
        };
        // One that Kubernetes calls unsafe: here it is this guest's alone.
        let pod = node
            .cri()
            .run_pod(with("sysctl", "kernel.msgmax", "12345"))?;
        let id = node.start(&pod, shell("main", "exec sleep 10000"))?;
        assert_eq!(
            exec_text(node, &id, "cat /proc/sys/kernel/msgmax")?,
            "12345"
        );
        assert_ne!(
            fs::read_to_string("/proc/sys/kernel/msgmax")?.trim(),
            "12345"
        );
        let unknown = node
            .cri()
            .run_pod(with("unknown", "kernel.no_such_thing", "1"));
        assert_refused(unknown, Code::InvalidArgument, "kernel.no_such_thing");
        let outside = node.cri().run_pod(with("outside", "../../etc/passwd", "1"));
        assert_refused(outside, Code::InvalidArgument, "passwd");
        Ok(())
    })
}

#[test]
fn a_container_can_join_the_processes_of_another() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("target")?;
        let pids = |mode: NamespaceMode, target: &str| LinuxContainerSecurityContext {
            namespace_options: Some(NamespaceOption {
                pid: mode.into(),
                target_id: target.to_owned(),
                ..NamespaceOption::default()
            }),
            ..LinuxContainerSecurityContext::default()
        };
        let own = with_security(
            shell("own", "exec sleep 12345"),
            pids(NamespaceMode::Container, ""),
        );
        let own = node.start(&pod, own)?;
        assert_eq!(
            exec_text(node, &own, "cat /proc/1/cmdline | tr '\\0' ' '")?,
            "sleep 12345"
        );
        let debugger = with_security(
            shell("debugger", "exec sleep 10000"),
            pids(NamespaceMode::Target, &own),
        );
        let debugger = node.start(&pod, debugger)?;
        assert_eq!(
            exec_text(node, &debugger, "cat /proc/1/cmdline | tr '\\0' ' '")?,
            "sleep 12345"
        );
        let shared = node.start(&pod, shell("shared", "exec sleep 10000"))?;
        let seen = exec_text(
            node,
            &shared,
            "grep -l 1234[5] /proc/[0-9]*/cmdline || echo none",
        )?;
        assert_eq!(seen, "none");
        let of_host = with_security(shell("host", "true"), pids(NamespaceMode::Node, ""));
        let answer = node.cri().create(&pod, of_host, pod_config(node, "target"));
        assert_refused(answer, Code::InvalidArgument, "namespace_options.pid");
        Ok(())
    })
}
