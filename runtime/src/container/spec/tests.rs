use super::*;
use crate::config::VmConfig;
use crate::container::config::tests::{image, request};
use crate::container::device::{Device, DeviceSource};
use crate::container::mount::{Mount, Source};
use crate::sandbox::Propagation;
use serde_json::Value;

fn pod() -> PodConfig {
    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "p".into(),
            ..Default::default()
        }),
        hostname: "pod-1".into(),
        ..Default::default()
    };
    PodConfig::check(config, &VmConfig::default(), false).unwrap()
}

fn plan(config: &cri::ContainerConfig, of_image: &str) -> Result<(Plan, Value), FieldError> {
    let plan = Plan::new(config, &image(of_image), &pod(), &checked(&[]))?;
    let spec = serde_json::from_slice(&plan.spec).unwrap();
    Ok((plan, spec))
}

fn checked(mounts: &[Mount]) -> ContainerConfig {
    ContainerConfig::check(&request(), &image("{}"), mounts.to_vec(), Vec::new()).unwrap()
}

fn with_security(security: cri::LinuxContainerSecurityContext) -> cri::ContainerConfig {
    let linux = cri::LinuxContainerConfig {
        security_context: Some(security),
        ..Default::default()
    };
    cri::ContainerConfig {
        command: vec!["sh".into()],
        linux: Some(linux),
        ..request()
    }
}

#[test]
fn spec_of_a_plain_container_is_the_golden_one() {
    let mut config = request();
    config.args = vec!["-c".into(), "true".into()];
    config.envs = vec![cri::KeyValue {
        key: "A".into(),
        value: b"2".to_vec(),
    }];
    let of_image = r#"{"Entrypoint":["sh"],"Cmd":["ignored"],"Env":["A=1","B=1"],"User":"www"}"#;
    let (plan, spec) = plan(&config, of_image).unwrap();
    let golden: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    let text = serde_json::to_string_pretty(&spec).unwrap();
    assert!(
        spec == golden,
        "the spec has changed; if that was meant, golden.json becomes\n{text}"
    );
    assert_eq!(plan.user.name, "www");
    assert_eq!(plan.pids, PidMode::Pod);
}

#[test]
fn every_spec_is_one_that_the_guest_reads() {
    for privileged in [false, true] {
        let mut pod = pod();
        pod.privileged = true;
        let config = with_security(cri::LinuxContainerSecurityContext {
            privileged,
            no_new_privs: true,
            readonly_rootfs: true,
            seccomp: Some(cri::SecurityProfile::default()),
            ..Default::default()
        });
        let plan = Plan::new(&config, &image("{}"), &pod, &checked(&[])).unwrap();
        let spec: oci_spec::runtime::Spec = serde_json::from_slice(&plan.spec).unwrap();
        assert_eq!(
            spec.linux().as_ref().unwrap().seccomp().is_none(),
            privileged
        );
        assert!(plan.read_only);
    }
}

#[test]
fn command_replaces_the_images_entry_point_and_command() {
    let args = |command: &[&str], args: &[&str]| {
        let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
        let config = cri::ContainerConfig {
            command: owned(command),
            args: owned(args),
            ..request()
        };
        let (_, spec) = plan(&config, r#"{"Entrypoint":["e"],"Cmd":["c"]}"#).unwrap();
        spec["process"]["args"].clone()
    };
    assert_eq!(args(&[], &[]), json!(["e", "c"]));
    assert_eq!(args(&[], &["a"]), json!(["e", "a"]));
    assert_eq!(args(&["x"], &[]), json!(["x"]));
    assert_eq!(args(&["x"], &["a"]), json!(["x", "a"]));
    assert_eq!(plan(&request(), "{}").unwrap_err().field, "config.command");
}

#[test]
fn user_is_the_requests_then_the_images() {
    let name = |security: cri::LinuxContainerSecurityContext| {
        plan(&with_security(security), r#"{"User":"www:web"}"#).map(|(plan, _)| plan.user.name)
    };
    let number = |value| Some(cri::Int64Value { value });
    let none = cri::LinuxContainerSecurityContext::default();
    assert_eq!(name(none.clone()).unwrap(), "www:web");
    let user = cri::LinuxContainerSecurityContext {
        run_as_user: number(7),
        ..none.clone()
    };
    assert_eq!(name(user.clone()).unwrap(), "7");
    let group = cri::LinuxContainerSecurityContext {
        run_as_group: number(8),
        ..user
    };
    assert_eq!(name(group).unwrap(), "7:8");
    let alone = cri::LinuxContainerSecurityContext {
        run_as_group: number(8),
        ..none.clone()
    };
    assert!(name(alone).unwrap_err().field.ends_with("run_as_group"));
    let negative = cri::LinuxContainerSecurityContext {
        run_as_user: number(-1),
        ..none
    };
    assert!(name(negative).unwrap_err().field.ends_with("run_as_user"));
}

#[test]
fn pid_mode_follows_the_request() {
    let pids = |mode: cri::NamespaceMode, target: &str| {
        let options = cri::NamespaceOption {
            pid: mode.into(),
            target_id: target.into(),
            ..Default::default()
        };
        let security = cri::LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        };
        plan(&with_security(security), "{}").map(|(plan, spec)| (plan.pids, spec))
    };
    let has_pid = |spec: &Value| {
        spec["linux"]["namespaces"]
            .as_array()
            .unwrap()
            .iter()
            .any(|n| n["type"] == "pid")
    };
    let (mode, spec) = pids(cri::NamespaceMode::Pod, "").unwrap();
    assert!(mode == PidMode::Pod && !has_pid(&spec));
    let (mode, spec) = pids(cri::NamespaceMode::Container, "").unwrap();
    assert!(mode == PidMode::Container && has_pid(&spec));
    let (mode, spec) = pids(cri::NamespaceMode::Target, "abc").unwrap();
    assert!(mode == PidMode::Target("abc".into()) && !has_pid(&spec));
    assert!(
        pids(cri::NamespaceMode::Target, "")
            .unwrap_err()
            .field
            .ends_with("target_id")
    );
    assert!(
        pids(cri::NamespaceMode::Node, "")
            .unwrap_err()
            .field
            .ends_with(".pid")
    );
}

#[test]
fn privileged_container_needs_a_privileged_pod() {
    let security = cri::LinuxContainerSecurityContext {
        privileged: true,
        ..Default::default()
    };
    let error = plan(&with_security(security), "{}").unwrap_err();
    assert!(error.field.ends_with("privileged"));
}

#[test]
fn limits_reach_the_spec_and_wrong_ones_are_refused() {
    let limits = |change: fn(&mut cri::LinuxContainerResources)| {
        let mut resources = cri::LinuxContainerResources::default();
        change(&mut resources);
        let linux = cri::LinuxContainerConfig {
            resources: Some(resources),
            ..Default::default()
        };
        let config = cri::ContainerConfig {
            command: vec!["x".into()],
            linux: Some(linux),
            ..request()
        };
        plan(&config, "{}").map(|(_, spec)| spec)
    };
    let spec = limits(|resources| {
        resources.cpu_shares = 512;
        resources.cpu_quota = 50_000;
        resources.cpu_period = 100_000;
        resources.cpuset_cpus = "0-1".into();
        resources.memory_limit_in_bytes = 1 << 26;
        resources.oom_score_adj = 900;
        resources.unified = [("memory.high".to_owned(), "1000000".to_owned())].into();
    })
    .unwrap();
    let made = &spec["linux"]["resources"];
    let cpu = json!({ "shares": 512, "quota": 50_000, "period": 100_000 });
    assert_eq!(made["cpu"], cpu);
    assert_eq!(made["memory"], json!({ "limit": 1 << 26 }));
    assert_eq!(made["unified"], json!({ "memory.high": "1000000" }));
    assert_eq!(spec["process"]["oomScoreAdj"], 900);

    let field = |change| limits(change).unwrap_err().field;
    assert!(field(|r| r.unified = [("../x.y".into(), String::new())].into()).ends_with("unified"));
    assert!(field(|r| r.cpuset_cpus = "0;1".into()).ends_with("cpuset_cpus"));
    assert!(field(|r| r.oom_score_adj = 1001).ends_with("oom_score_adj"));
    assert!(field(|r| r.memory_limit_in_bytes = -1).ends_with("memory_limit_in_bytes"));
}

fn host_mount(container_path: &str, volume: &str, read_only: bool) -> Mount {
    Mount {
        container_path: container_path.into(),
        source: Source::Host {
            path: "/asked".into(),
            real: "/real".into(),
            volume: volume.into(),
        },
        read_only,
        submounts_writable: false,
        recursive_read_only: false,
        propagation: Propagation::Private,
        options: vec!["noexec".into()],
        users: None,
    }
}

fn mounts_of(security: cri::LinuxContainerSecurityContext, asked: &[Mount]) -> Vec<Value> {
    let of_image = r#"{"Volumes":{"/var/lib/data":{},"../escape":{},"/":{}}}"#;
    let plan = Plan::new(
        &with_security(security),
        &image(of_image),
        &pod(),
        &checked(asked),
    )
    .unwrap();
    let spec: Value = serde_json::from_slice(&plan.spec).unwrap();
    spec["mounts"].as_array().unwrap().clone()
}

#[test]
fn a_mount_comes_before_those_below_it_and_replaces_the_usual_one() {
    let asked = [
        host_mount("/data/deep/er", "v2", false),
        host_mount("/data", "v1", true),
        host_mount("/dev/shm", "v3", false),
    ];
    let mounts = mounts_of(cri::LinuxContainerSecurityContext::default(), &asked);
    let at = |path: &str| {
        let found = mounts.iter().enumerate();
        let found: Vec<_> = found.filter(|(_, it)| it["destination"] == path).collect();
        assert_eq!(found.len(), 1, "{path}");
        found[0]
    };
    assert!(at("/data").0 < at("/data/deep/er").0);
    let options = json!(["rbind", "rprivate", "ro", "noexec"]);
    assert_eq!(at("/data").1["options"], options);
    assert_eq!(at("/data").1["type"], "volume");
    assert_eq!(at("/dev/shm").1["source"], "v3");
    assert!(at("/dev").0 < at("/dev/shm").0);
    let own = mounts.iter().any(|mount| mount["type"] == "own");
    assert!(!own, "all of the root is writable");
}

#[test]
fn a_brought_dev_comes_without_the_usual_things_in_it() {
    let mounts = mounts_of(
        cri::LinuxContainerSecurityContext::default(),
        &[host_mount("/dev", "v1", false)],
    );
    let below = mounts.iter().filter(|mount| {
        let destination = mount["destination"].as_str().unwrap();
        destination.starts_with("/dev")
    });
    assert_eq!(below.count(), 1);
}

#[test]
fn an_images_volumes_stay_writable_below_a_read_only_root() {
    let mounts = mounts_of(
        cri::LinuxContainerSecurityContext {
            readonly_rootfs: true,
            ..Default::default()
        },
        &[],
    );
    let own: Vec<_> = mounts
        .iter()
        .filter(|mount| mount["type"] == "own")
        .collect();
    assert_eq!(own.len(), 1, "what leads out of the root is left out");
    assert_eq!(own[0]["destination"], "/var/lib/data");
}

#[test]
fn a_device_that_every_kernel_has_gets_a_node_and_a_rule() {
    let mut own = checked(&[]);
    own.devices = vec![Device {
        container_path: "/dev/fuse".into(),
        access: "rw".into(),
        mode: 0o666,
        source: DeviceSource::Guest {
            major: 10,
            minor: 229,
        },
    }];
    let config = with_security(cri::LinuxContainerSecurityContext::default());
    let plan = Plan::new(&config, &image("{}"), &pod(), &own).unwrap();
    let spec: Value = serde_json::from_slice(&plan.spec).unwrap();
    assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/fuse");
    let rules = spec["linux"]["resources"]["devices"].as_array().unwrap();
    let rule = json!({
        "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"
    });
    assert_eq!(rules.last(), Some(&rule));
}

fn users() -> cri::UserNamespace {
    let range = |host_id| {
        vec![cri::IdMapping {
            host_id,
            container_id: 0,
            length: 65_536,
        }]
    };
    cri::UserNamespace {
        mode: cri::NamespaceMode::Pod.into(),
        uids: range(100_000),
        gids: range(200_000),
    }
}

/// A plan in a pod with [`users`], of a container that asks for `asked`.
fn plan_with_users(
    asked: Option<cri::UserNamespace>,
    change: impl FnOnce(&mut cri::LinuxContainerSecurityContext),
    own: &ContainerConfig,
) -> Result<Value, FieldError> {
    let mut pod = pod();
    pod.privileged = true;
    pod.user_namespace = UserNamespace::check(Some(&users()), "users").unwrap();
    let mut security = cri::LinuxContainerSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            userns_options: asked,
            ..Default::default()
        }),
        ..Default::default()
    };
    change(&mut security);
    let plan = Plan::new(&with_security(security), &image("{}"), &pod, own)?;
    Ok(serde_json::from_slice(&plan.spec).unwrap())
}

#[test]
fn a_container_joins_the_pods_users_and_owns_what_it_mounts() {
    for privileged in [false, true] {
        let mut mount = host_mount("/data", "v1", false);
        mount.users = UserNamespace::check(Some(&users()), "users").unwrap();
        let own = checked(&[mount, host_mount("/plain", "v1", false)]);
        let privileged = |security: &mut cri::LinuxContainerSecurityContext| {
            security.privileged = privileged;
        };
        let spec = plan_with_users(Some(users()), privileged, &own).unwrap();
        let namespaces = spec["linux"]["namespaces"].as_array().unwrap();
        for name in ["user", "cgroup"] {
            assert!(namespaces.contains(&json!({ "type": name })), "{name}");
        }
        let uids = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
        let gids = json!([{ "containerID": 0, "hostID": 200_000, "size": 65_536 }]);
        assert_eq!(spec["linux"]["uidMappings"], uids);
        assert_eq!(spec["linux"]["gidMappings"], gids);
        let mounts = spec["mounts"].as_array().unwrap();
        let at = |path: &str| mounts.iter().find(|mount| mount["destination"] == path);
        for path in ["/data", "/dev/shm"] {
            assert_eq!(at(path).unwrap()["uidMappings"], uids, "{path}");
            assert_eq!(at(path).unwrap()["gidMappings"], gids, "{path}");
        }
        assert!(at("/plain").unwrap().get("uidMappings").is_none());
        assert_eq!(at("/sys").unwrap()["type"], "bind");
        serde_json::from_value::<oci_spec::runtime::Spec>(spec.clone()).unwrap();
    }
}

#[test]
fn other_users_than_the_pods_are_refused_by_name() {
    let own = checked(&[]);
    let node = cri::UserNamespace {
        mode: cri::NamespaceMode::Node.into(),
        ..Default::default()
    };
    let mut other = users();
    other.gids[0].host_id = 1;
    for asked in [None, Some(node), Some(other)] {
        let refused = plan_with_users(asked, |_| {}, &own).unwrap_err();
        assert_eq!(refused.field, USERS);
    }
    // And in a pod that has none.
    let security = cri::LinuxContainerSecurityContext {
        namespace_options: Some(cri::NamespaceOption {
            userns_options: Some(users()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let refused = plan(&with_security(security), "{}").unwrap_err();
    assert_eq!(refused.field, USERS);
}

#[test]
fn ids_and_devices_that_the_users_do_not_have_are_refused_by_name() {
    let refused = |change: fn(&mut cri::LinuxContainerSecurityContext), own: &ContainerConfig| {
        let error = plan_with_users(Some(users()), change, own).unwrap_err();
        error.field
    };
    let path = "config.linux.security_context.";
    let own = checked(&[]);
    let beyond = Some(cri::Int64Value { value: 65_536 });
    assert_eq!(
        refused(
            |s| s.run_as_user = Some(cri::Int64Value { value: 65_536 }),
            &own
        ),
        format!("{path}run_as_user")
    );
    assert!(
        plan_with_users(
            Some(users()),
            |s| s.run_as_user = Some(cri::Int64Value { value: 65_535 }),
            &own
        )
        .is_ok()
    );
    let group = plan_with_users(
        Some(users()),
        |s| {
            s.run_as_user = Some(cri::Int64Value { value: 1 });
            s.run_as_group = beyond;
        },
        &own,
    );
    assert_eq!(group.unwrap_err().field, format!("{path}run_as_group"));
    assert_eq!(
        refused(|s| s.supplemental_groups = vec![1, 70_000], &own),
        format!("{path}supplemental_groups")
    );
    let mut with_device = checked(&[]);
    with_device.devices = vec![Device {
        container_path: "/dev/fuse".into(),
        access: "rw".into(),
        mode: 0o666,
        source: DeviceSource::Guest {
            major: 10,
            minor: 229,
        },
    }];
    assert_eq!(refused(|_| {}, &with_device), "config.devices");
}
