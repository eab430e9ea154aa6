//! Requests that cannot be honoured: each has the code that CRI's callers act on, and says why.

use anyhow::Result;
use isopod_proto::cri::{
    CheckpointPodRequest, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig,
};
use isopod_tests::node::{self, Images, Node, Options, assert_refused, pod_config, shell};
use tonic::Code;

/// Of no sandbox and no container.
const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn without_images() -> Options {
    Options::host().images(Images::None)
}

#[test]
fn unknown_ids_are_not_found_where_something_is_asked_of_them() -> Result<()> {
    node::run(without_images(), |node| {
        let cri = node.cri();
        assert_refused(cri.pod_status(UNKNOWN), Code::NotFound, UNKNOWN);
        assert_refused(cri.container_status(UNKNOWN), Code::NotFound, UNKNOWN);
        assert_refused(cri.start(UNKNOWN), Code::NotFound, UNKNOWN);
        assert_refused(cri.exec(UNKNOWN, &["true"], 1), Code::NotFound, UNKNOWN);
        assert_refused(cri.reopen_log(UNKNOWN), Code::NotFound, UNKNOWN);
        assert_refused(cri.container_stats(UNKNOWN), Code::NotFound, UNKNOWN);
        assert_refused(cri.pod_stats(UNKNOWN), Code::NotFound, UNKNOWN);
        let created = cri.create(UNKNOWN, shell("c", "true"), pod_config(node, "p"));
        assert_refused(created, Code::NotFound, UNKNOWN);
        Ok(())
    })
}

#[test]
fn stopping_and_removing_unknown_ids_is_ok() -> Result<()> {
    node::run(without_images(), |node| {
        let cri = node.cri();
        cri.stop(UNKNOWN, 1)?;
        cri.remove(UNKNOWN)?;
        cri.stop_pod(UNKNOWN)?;
        cri.remove_pod(UNKNOWN)?;
        Ok(())
    })
}

#[test]
fn an_unknown_runtime_handler_is_invalid_and_the_known_ones_are_named() -> Result<()> {
    node::run(without_images(), |node| {
        let answer = node.cri().run_pod_with("kata", pod_config(node, "p"));
        assert_refused(answer, Code::InvalidArgument, "isopod");
        let answer = node.cri().run_pod_with("kata", pod_config(node, "p"));
        assert_refused(answer, Code::InvalidArgument, "kata");
        Ok(())
    })
}

#[test]
fn the_hosts_namespaces_are_refused_by_name() -> Result<()> {
    node::run(without_images(), |node| {
        let host = NamespaceMode::Node.into();
        for (name, options) in [
            (
                "network",
                NamespaceOption {
                    network: host,
                    ..NamespaceOption::default()
                },
            ),
            (
                "pid",
                NamespaceOption {
                    pid: host,
                    ..NamespaceOption::default()
                },
            ),
            (
                "ipc",
                NamespaceOption {
                    ipc: host,
                    ..NamespaceOption::default()
                },
            ),
        ] {
            let answer = node.cri().run_pod(with_namespaces(node, options));
            assert_refused(answer, Code::InvalidArgument, name);
        }
        Ok(())
    })
}

fn with_namespaces(node: &Node, options: NamespaceOption) -> PodSandboxConfig {
    PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext {
                namespace_options: Some(options),
                ..LinuxSandboxSecurityContext::default()
            }),
            ..LinuxPodSandboxConfig::default()
        }),
        ..pod_config(node, "p")
    }
}

#[test]
fn a_pod_without_a_name_is_invalid() -> Result<()> {
    node::run(without_images(), |node| {
        let answer = node.cri().run_pod(PodSandboxConfig::default());
        assert_refused(answer, Code::InvalidArgument, "metadata");
        Ok(())
    })
}

#[test]
fn methods_that_are_not_there_yet_say_so() -> Result<()> {
    node::run(without_images(), |node| {
        let checkpoint = CheckpointPodRequest::default();
        let answer = node
            .cri()
            .runtime(async |mut cri| cri.checkpoint_pod(checkpoint).await);
        assert_refused(answer, Code::Unimplemented, "yet");
        Ok(())
    })
}

#[test]
fn a_machine_without_kvm_is_refused_with_its_device() -> Result<()> {
    node::run(without_images().vm("kvm", "/nonexistent/kvm"), |node| {
        let answer = node.cri().run_pod(pod_config(node, "p"));
        assert_refused(answer, Code::FailedPrecondition, "/nonexistent/kvm");
        assert_eq!(node.cri().pods(None)?, []);
        Ok(())
    })
}

#[test]
fn a_missing_kernel_agent_image_initramfs_or_vmm_is_refused_with_its_path() -> Result<()> {
    for key in ["kernel", "agent_image", "initramfs", "vmm"] {
        // A device that can be opened anywhere: the files are missed before KVM is used.
        let options = without_images()
            .kernel("/bin/true")
            .vm("agent_image", "/bin/true")
            .vm("kvm", "/dev/null")
            .vm(key, "/nonexistent/file");
        node::run(options, |node| {
            let answer = node.cri().run_pod(pod_config(node, "p"));
            assert_refused(answer, Code::FailedPrecondition, "/nonexistent/file");
            assert_eq!(node.cri().pods(None)?, []);
            Ok(())
        })?;
    }
    Ok(())
}
