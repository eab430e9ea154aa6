//! What the VMM does when it is asked over its control socket, and what the guest sees of it.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result};
use isopod_proto::cri::{LinuxContainerResources, LinuxPodSandboxConfig};
use isopod_proto::vmm::{MachineState, PauseRequest, ResumeRequest, StatusRequest};
use isopod_proto::vmm_ttrpc::MachineClient;
use isopod_tests::log::{Stream, texts};
use isopod_tests::node::{self, Node, Options, pod_config, shell};
use tokio::net::UnixStream;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::Context;

/// How many containers come and go in each of some threads.
const CYCLES: u32 = 8;

fn control_socket(node: &Node, pod: &str) -> PathBuf {
    let sandbox = node.state_dir().join("sandboxes").join(pod);
    sandbox.join("control.sock")
}

/// Calls a sandbox's VMM, over a connection of its own.
fn machine<T>(node: &Node, pod: &str, call: impl AsyncFnOnce(MachineClient) -> T) -> Result<T> {
    let socket = control_socket(node, pod);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let stream = UnixStream::connect(&socket)
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(call(MachineClient::new(Client::new(Socket::new(stream)))).await)
    })
}

#[test]
fn a_paused_machine_stands_still_and_goes_on_where_it_was() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("pause")?;
        let script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; usleep 10000; done";
        let id = node.start(&pod, shell("c", script))?;
        node.wait_logged(&id, "line 20\n")?;
        let path = node.cri().container_status(&id)?.log_path;
        let state = || -> Result<MachineState> {
            let status = machine(node, &pod, async |machine| {
                machine
                    .status(Context::default(), &StatusRequest::default())
                    .await
            })??;
            Ok(status.state.enum_value_or_default())
        };

        assert_eq!(state()?, MachineState::MACHINE_STATE_RUNNING);
        for _ in 0..2 {
            machine(node, &pod, async |machine| {
                machine
                    .pause(Context::default(), &PauseRequest::default())
                    .await
            })??;
        }
        assert_eq!(state()?, MachineState::MACHINE_STATE_PAUSED);
        // What was on its way when the machine stopped is written by now.
        sleep(Duration::from_millis(500));
        let length = std::fs::read(&path)?.len();
        sleep(Duration::from_secs(2));
        assert_eq!(std::fs::read(&path)?.len(), length, "a line in the pause");

        for _ in 0..2 {
            machine(node, &pod, async |machine| {
                machine
                    .resume(Context::default(), &ResumeRequest::default())
                    .await
            })??;
        }
        assert_eq!(state()?, MachineState::MACHINE_STATE_RUNNING);
        assert_eq!(node.wait_exited(&id)?.exit_code, 0);
        let wanted: Vec<String> = (1..=300).map(|number| format!("line {number}")).collect();
        assert_eq!(texts(&node.container_log(&id)?, Stream::Stdout), wanted);
        Ok(())
    })
}

#[test]
fn a_guest_has_the_processors_and_the_memory_that_its_pod_asks_for() -> Result<()> {
    const MIB: i64 = 1 << 20;
    node::run(Options::kvm().vm("max_vcpus", 1), |node| {
        let small = node.busybox_pod("small")?;
        let mut config = pod_config(node, "large");
        config.linux = Some(LinuxPodSandboxConfig {
            resources: Some(LinuxContainerResources {
                cpu_period: 100_000,
                cpu_quota: 250_000,
                memory_limit_in_bytes: 400 * MIB,
                ..LinuxContainerResources::default()
            }),
            ..LinuxPodSandboxConfig::default()
        });
        let large = node.cri().run_pod(config.clone())?;
        let seen = |pod: &str, config| -> Result<(String, i64)> {
            let id = node.cri().create(pod, shell("c", "sleep 10000"), config)?;
            node.cri().start(&id)?;
            let text = node.exec(&id, "nproc; grep MemTotal /proc/meminfo | tr -dc 0-9")?;
            let text = String::from_utf8(text)?;
            let (processors, memory) = text.split_once('\n').context("two lines")?;
            Ok((processors.to_owned(), memory.trim().parse::<i64>()? >> 10))
        };
        let (processors, memory) = seen(&small, pod_config(node, "small"))?;
        assert_eq!(processors, "1");
        assert!((150..256).contains(&memory), "{memory} MiB of 256");
        let (processors, memory) = seen(&large, config)?;
        assert_eq!(processors, "3");
        assert!((400..464).contains(&memory), "{memory} MiB of 464");
        Ok(())
    })
}

/// The guest searches its bus for a new disk just when the VMM takes another one away.
#[test]
fn containers_of_a_pod_come_while_others_go() -> Result<()> {
    node::run(Options::kvm(), |node| {
        let pod = node.busybox_pod("busy")?;
        std::thread::scope(|scope| {
            let come_and_go = |name: &'static str| {
                let pod = &pod;
                scope.spawn(move || {
                    (0..CYCLES).try_for_each(|_| -> Result<()> {
                        let id = node.create(pod, shell(name, "true"))?;
                        Ok(node.cri().remove(&id)?)
                    })
                })
            };
            ["one", "two", "three"]
                .map(come_and_go)
                .into_iter()
                .try_for_each(|thread| thread.join().expect("no panic"))
        })?;
        let id = node.start(&pod, shell("last", "echo here"))?;
        node.wait_logged(&id, "here\n")
    })
}
