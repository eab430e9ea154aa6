//! From the command line to the CRI's configurations.

use std::collections::HashMap;

use isopod_proto::cri::{
    ContainerConfig, ContainerMetadata, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, SecurityProfile, security_profile::ProfileType,
};

use super::args::{Args, CPU_PERIOD_US, User};

/// Label of a run's pod: by it everything that a run made is found again, whatever became of it.
pub(super) const RUN_LABEL: &str = "isopod.run/id";

/// Longest default host name, in bytes (`hostname(7)`).
const HOSTNAME_MAX: usize = 63;

/// The pod of a run.
pub(super) fn sandbox(args: &Args, run_id: &str) -> PodSandboxConfig {
    let name = name(args, run_id);
    PodSandboxConfig {
        hostname: hostname(&name),
        metadata: Some(PodSandboxMetadata {
            name,
            uid: run_id.to_owned(),
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        labels: HashMap::from([(RUN_LABEL.to_owned(), run_id.to_owned())]),
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            resources: resources(args),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The container of a run. `environment` looks up this process's own variables.
pub(super) fn container(
    args: &Args,
    run_id: &str,
    image: &str,
    environment: impl Fn(&str) -> Option<String>,
) -> ContainerConfig {
    ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: name(args, run_id),
            attempt: 0,
        }),
        image: Some(ImageSpec {
            image: image.to_owned(),
            user_specified_image: args.image.clone(),
            ..Default::default()
        }),
        command: args.entrypoint.clone().into_iter().collect(),
        args: args.command.clone(),
        working_dir: args.workdir.clone(),
        envs: args
            .env
            .iter()
            .filter_map(|variable| pair(variable, &environment))
            .map(|(key, value)| KeyValue {
                key,
                value: value.into_bytes(),
            })
            .collect(),
        stdin: args.interactive,
        stdin_once: args.interactive,
        tty: args.tty,
        linux: Some(LinuxContainerConfig {
            resources: resources(args),
            security_context: Some(security(args)),
        }),
        ..Default::default()
    }
}

fn name(args: &Args, run_id: &str) -> String {
    match &args.name {
        Some(name) => name.clone(),
        None => format!("run-{}", run_id.get(..8).unwrap_or(run_id)),
    }
}

/// The name as far as it can be a host's: others are left to the daemon.
fn hostname(name: &str) -> String {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if name.len() <= HOSTNAME_MAX && name.bytes().all(fits) && !name.starts_with('-') {
        name.to_ascii_lowercase()
    } else {
        String::new()
    }
}

/// The command is process 1 of its container, as with other tools of this kind.
fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}

fn security(args: &Args) -> LinuxContainerSecurityContext {
    let mut security = LinuxContainerSecurityContext {
        namespace_options: Some(namespaces()),
        seccomp: Some(SecurityProfile {
            profile_type: ProfileType::RuntimeDefault.into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    match &args.user {
        Some(User::Id { uid, gid }) => {
            let value = |id: u32| Int64Value { value: id.into() };
            security.run_as_user = Some(value(*uid));
            security.run_as_group = gid.map(value);
        }
        Some(User::Name(name)) => security.run_as_username.clone_from(name),
        None => {}
    }
    security
}

fn resources(args: &Args) -> Option<LinuxContainerResources> {
    if args.memory.is_none() && args.cpus.is_none() {
        return None;
    }
    Some(LinuxContainerResources {
        memory_limit_in_bytes: args.memory.unwrap_or(0),
        cpu_quota: args.cpus.map_or(0, |quota| quota.0),
        cpu_period: args.cpus.map_or(0, |_| CPU_PERIOD_US),
        ..Default::default()
    })
}

/// `NAME=VALUE`, or a name whose value is passed on if there is one.
fn pair(variable: &str, environment: impl Fn(&str) -> Option<String>) -> Option<(String, String)> {
    match variable.split_once('=') {
        Some((name, value)) => Some((name.to_owned(), value.to_owned())),
        None => Some((variable.to_owned(), environment(variable)?)),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Args {
        let words = std::iter::once("run").chain(line.split_whitespace());
        Line::try_parse_from(words).unwrap().args
    }

    fn config(line: &str) -> ContainerConfig {
        let environment = |name: &str| (name == "HOME").then(|| "/root".to_owned());
        container(&args(line), "0123456789abcdef", "sha256:1", environment)
    }

    #[test]
    fn command_replaces_the_images_command_and_keeps_its_flags() {
        let config = config("-t busybox ls -l --all");
        assert_eq!(config.args, ["ls", "-l", "--all"]);
        assert!(config.command.is_empty());
        assert!(config.tty && !config.stdin);
    }

    #[test]
    fn entrypoint_replaces_the_images_entrypoint() {
        let config = config("--entrypoint /bin/sh busybox -c true");
        assert_eq!(config.command, ["/bin/sh"]);
        assert_eq!(config.args, ["-c", "true"]);
    }

    #[test]
    fn variables_are_set_or_passed_on() {
        let config = config("-e A=1=2 -e HOME -e NOT_THERE --env B= busybox");
        let pairs: Vec<_> = config
            .envs
            .iter()
            .map(|v| (v.key.as_str(), &v.value[..]))
            .collect();
        assert_eq!(pairs, [("A", &b"1=2"[..]), ("HOME", b"/root"), ("B", b"")]);
    }

    #[test]
    fn limits_are_the_containers_and_the_pods() {
        let line = "-m 128m --cpus 1.5 busybox";
        let expect = LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            cpu_quota: 150_000,
            cpu_period: 100_000,
            ..Default::default()
        };
        assert_eq!(config(line).linux.unwrap().resources, Some(expect.clone()));
        let pod = sandbox(&args(line), "0123456789abcdef");
        assert_eq!(pod.linux.unwrap().resources, Some(expect));
        assert_eq!(config("busybox").linux.unwrap().resources, None);
    }

    #[test]
    fn user_is_a_number_or_a_name() {
        let security = |line| config(line).linux.unwrap().security_context.unwrap();
        assert_eq!(security("-u 7:8 busybox").run_as_group.unwrap().value, 8);
        assert_eq!(security("-u nobody busybox").run_as_username, "nobody");
    }

    #[test]
    fn pod_has_the_given_name_or_one_of_its_own() {
        let pod = sandbox(&args("--name Web busybox"), "0123456789abcdef");
        assert_eq!(pod.metadata.unwrap().name, "Web");
        assert_eq!(pod.hostname, "web");
        let pod = sandbox(&args("busybox"), "0123456789abcdef");
        assert_eq!(pod.metadata.unwrap().name, "run-01234567");
        assert_eq!(pod.labels[RUN_LABEL], "0123456789abcdef");
    }
}
