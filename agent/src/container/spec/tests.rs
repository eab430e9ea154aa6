//! Specs, before and after.

use super::*;
use crate::container::Serial;

fn json(process: &str, rest: &str) -> String {
    format!(
        r#"{{"ociVersion":"1.2.0","process":{{"cwd":"/","user":{{"uid":9,"gid":9,"umask":18}},
        "args":["true"],"env":["PATH=/bin"]{process}}},
        "linux":{{"namespaces":[{{"type":"mount"}},{{"type":"pid"}}]}}{rest}}}"#
    )
}

fn settled(json: &str, pid_namespace: PidNamespace) -> ContainerSpec {
    let place = Place {
        rootfs: "/run/rootfs".into(),
        read_only: true,
        cgroup: "/isopod/c1".into(),
        pid_namespace,
        shared_files: vec![("/run/resolv.conf".into(), "/etc/resolv.conf")],
        sources: vec!["/run/volumes/v1".into(), "/run/images/i1/etc".into()],
        devices: vec![Device {
            path: "/dev/data".into(),
            major: 254,
            minor: 3,
            access: "r".into(),
            mode: 0o660,
        }],
        users: None,
    };
    let identity = Identity {
        uid: 33,
        gid: 34,
        groups: vec![34, 40],
        home: "/var/www".to_owned(),
    };
    let mut spec = ContainerSpec::parse(json.as_bytes()).unwrap();
    spec.settle(&place, &identity).unwrap();
    spec
}

#[test]
fn what_every_container_needs_is_asked_for() {
    for bad in [
        "",
        "[]",
        r#"{"ociVersion":"2.0.0","linux":{}}"#,
        r#"{"ociVersion":"1.0.0","linux":{}}"#,
        r#"{"ociVersion":"1.0.0","process":{"cwd":"/","user":{"uid":0,"gid":0},"args":["a"]}}"#,
        r#"{"ociVersion":"1.0.0","linux":{},"process":{"cwd":"/","user":{"uid":0,"gid":0}}}"#,
    ] {
        assert!(ContainerSpec::parse(bad.as_bytes()).is_err(), "{bad}");
    }
    assert!(ContainerSpec::parse(json("", "").as_bytes()).is_ok());
}

#[test]
fn a_nul_byte_in_the_command_is_refused() {
    let bad = json("", "").replace("true", r"tr\u0000ue");
    let error = ContainerSpec::parse(bad.as_bytes()).unwrap_err();
    assert!(matches!(error, SpecError::Strings("command")));
}

#[test]
fn place_and_identity_replace_the_callers() {
    let container = settled(
        &json("", r#","root":{"path":"/etc"},"hostname":"h""#),
        PidNamespace::Own,
    );
    let spec = container.spec();
    let root = spec.root().as_ref().unwrap();
    assert_eq!(
        (root.path().to_str(), root.readonly()),
        (Some("/run/rootfs"), Some(true))
    );
    assert_eq!(spec.hostname(), &None);
    let process = container.process().unwrap();
    assert_eq!((process.user().uid(), process.user().gid()), (33, 34));
    assert_eq!(process.user().umask(), Some(18));
    assert!(
        process
            .env()
            .as_ref()
            .unwrap()
            .contains(&"HOME=/var/www".to_owned())
    );
    assert!(container.has_own_pid_namespace());
}

#[test]
fn a_home_in_the_spec_stays() {
    let json = json("", "").replace("PATH=/bin", "HOME=/elsewhere");
    let container = settled(&json, PidNamespace::Own);
    let env = container.process().unwrap().env().clone().unwrap();
    assert_eq!(env, ["HOME=/elsewhere"]);
}

#[test]
fn capabilities_that_are_not_listed_are_not_granted() {
    let container = settled(&json("", ""), PidNamespace::Own);
    let none = container.process().unwrap().capabilities().clone().unwrap();
    assert!(none.bounding().as_ref().unwrap().is_empty());
    let some = json(r#","capabilities":{"bounding":["CAP_KILL"]}"#, "");
    let container = settled(&some, PidNamespace::Own);
    let some = container.process().unwrap().capabilities().clone().unwrap();
    assert_eq!(some.bounding().as_ref().unwrap().len(), 1);
    assert!(some.ambient().as_ref().unwrap().is_empty());
}

#[test]
fn a_shared_pid_namespace_replaces_the_specs() {
    let path = PathBuf::from("/proc/7/ns/pid");
    let container = settled(&json("", ""), PidNamespace::Shared(path.clone()));
    let linux = container.spec().linux().clone().unwrap();
    let namespaces = linux.namespaces().clone().unwrap();
    let pid: Vec<_> = namespaces
        .iter()
        .filter(|ns| ns.typ() == LinuxNamespaceType::Pid)
        .collect();
    assert_eq!(pid.len(), 1);
    assert_eq!(pid[0].path(), &Some(path));
    assert!(!container.has_own_pid_namespace());
}

#[test]
fn mounts_of_volumes_and_images_are_bound_from_where_they_are() {
    let mounts = r#","mounts":[
        {"destination":"/a","type":"volume","source":"v1","options":["rbind","ro"]},
        {"destination":"/proc","type":"proc","source":"proc"},
        {"destination":"/b","type":"image","source":"i1/etc"}]"#;
    let json = json("", mounts);
    let sources = ContainerSpec::parse(json.as_bytes()).unwrap().sources();
    let serial = |name: &str| Serial::new(name.to_owned()).unwrap();
    let image = Source::Image {
        serial: serial("i1"),
        part: "/etc".into(),
    };
    assert_eq!(sources.unwrap(), [Source::Volume(serial("v1")), image]);
    let container = settled(&json, PidNamespace::Own);
    let mounts = container.spec().mounts().clone().unwrap();
    let source = |index: usize| mounts[index].source().clone().unwrap();
    assert_eq!(source(0), Path::new("/run/volumes/v1"));
    assert_eq!(mounts[0].typ().as_deref(), Some("bind"));
    assert_eq!(source(1), Path::new("proc"));
    assert_eq!(source(2), Path::new("/run/images/i1/etc"));
}

#[test]
fn a_block_device_has_a_node_and_a_rule() {
    let container = settled(&json("", ""), PidNamespace::Own);
    let linux = container.spec().linux().clone().unwrap();
    let node = &linux.devices().as_ref().unwrap()[0];
    assert_eq!((node.path().to_str(), node.minor()), (Some("/dev/data"), 3));
    let rule = container.device_rules().last().unwrap();
    assert_eq!(
        (rule.major(), rule.access().as_deref()),
        (Some(254), Some("r"))
    );
}

#[test]
fn a_mount_of_something_without_a_name_is_refused() {
    for (kind, name) in [
        ("volume", ""),
        ("volume", "../etc"),
        ("volume", "a/b"),
        ("image", "/etc"),
        ("image", "i1/../.."),
        ("image", ".."),
    ] {
        let mounts =
            format!(r#","mounts":[{{"destination":"/a","type":"{kind}","source":"{name}"}}]"#);
        let spec = ContainerSpec::parse(json("", &mounts).as_bytes()).unwrap();
        assert!(spec.sources().is_err(), "{kind} {name:?}");
    }
}

#[test]
fn shared_files_give_way_to_the_callers_mounts() {
    let mount = r#","mounts":[{"destination":"/etc/resolv.conf","source":"/x","type":"bind"}]"#;
    let container = settled(&json("", mount), PidNamespace::Own);
    let mounts = container.spec().mounts().clone().unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].source().as_deref(), Some(Path::new("/x")));
    let mounts = settled(&json("", ""), PidNamespace::Own)
        .spec()
        .mounts()
        .clone()
        .unwrap();
    assert!(
        mounts[0]
            .options()
            .as_ref()
            .unwrap()
            .contains(&"ro".to_owned())
    );
}
