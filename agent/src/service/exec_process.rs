//! Starts one more process in a running container.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use isopod_proto::agent::{ContainerState, ExecProcessRequest, ExecProcessResponse};
use nix::unistd::Uid;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, LinuxCapabilitiesBuilder, Process as OciProcess,
    UserBuilder,
};
use serde::Serialize;

use super::error::AgentError;
use super::start_container::expect_state;
use super::{AgentService, write};
use crate::container::{
    Cgroup, Container, ContainerSpec, ExecId, SpecError, UserError, check_strings,
};
use crate::helper::{
    Confinement, Console, ExecRequest, HelperError, MappedUser, Outcome, Request, RuntimeRequest,
    launch,
};
use crate::process::{Follow, Process, Stdio};
use crate::user_namespace::Users;

/// What it takes to install a system call filter without `no_new_privs`, and to give that up again.
const FILTER_CAPABILITIES: [Capability; 2] = [Capability::SysAdmin, Capability::Setpcap];

/// libcontainer's name for its state file.
const STATE_FILE: &str = "state.json";

impl AgentService {
    /// Answers when the command was executed. It runs as the container's user, in its environment.
    pub(super) async fn exec_process(
        &self,
        request: ExecProcessRequest,
    ) -> Result<ExecProcessResponse, AgentError> {
        let exec_id = ExecId::new(request.exec_id.clone())?;
        check_strings("command", &request.args)?;
        if request.args.is_empty() {
            return Err(SpecError::Missing("command").into());
        }
        let container = self.containers.get(&request.container_id)?;
        container.reserve_exec(&exec_id)?;
        let result = self.exec(&container, &request).await;
        container.settle_exec(&exec_id, result.as_ref().ok().cloned());
        Ok(ExecProcessResponse {
            pid: result?.pid.as_raw(),
            ..Default::default()
        })
    }

    async fn exec(
        &self,
        container: &Arc<Container>,
        request: &ExecProcessRequest,
    ) -> Result<Arc<Process>, AgentError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("exec-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        // Deleting waits for this, and this does not begin while the container is deleted.
        let _together = container.lock.read().await;
        expect_state(container, ContainerState::CONTAINER_STATE_RUNNING)?;
        let created = container.created()?;
        let (mut process, mut confinement) = process(&created.spec, request)?;

        let owner = match self.users.get() {
            None => Uid::from_raw(process.user().uid()),
            Some(users) => join_last(users, &mut process, &mut confinement)?,
        };
        let folder = ExecFolder::new(self.container_folder(&container.id).join(&name))?;
        let runtime = folder.copy_state(&self.runtime(&container.id))?;
        let cgroup = container.cgroup.create_child(&name)?;
        let exec = ExecRequest {
            runtime,
            process: folder.json("process.json", &process)?,
            confinement: folder.json("confinement.json", &confinement)?,
            cgroup: name,
            console: None,
        };
        let result = self
            .launch_exec(container, &cgroup, request, exec, owner)
            .await;
        if result.is_err() {
            cgroup.kill()?;
            cgroup.remove().await?;
        }
        result
    }

    async fn launch_exec(
        &self,
        container: &Arc<Container>,
        cgroup: &Cgroup,
        request: &ExecProcessRequest,
        mut exec: ExecRequest,
        owner: Uid,
    ) -> Result<Arc<Process>, AgentError> {
        let (outcome, outcome_end) = Outcome::pipe().map_err(AgentError::Pipe)?;
        let (launched, stdio) = if request.terminal {
            let console = Console::listen(&self.folder("consoles"))?;
            exec.console = Some(console.path().to_owned());
            let result = launch(&self.reaper, &Request::Exec(exec), &[outcome_end.as_fd()]).await;
            drop(outcome_end);
            let launched = explain(result, outcome).await?;
            let master = console.master().await?;
            (launched, Stdio::terminal(master, request.stdin, owner)?)
        } else {
            let (stdio, ends) = Stdio::pipes(request.stdin, true, owner)?;
            let fds = [&ends.stdin, &ends.stdout, &ends.stderr].map(AsFd::as_fd);
            let fds = [outcome_end.as_fd(), fds[0], fds[1], fds[2]];
            let result = launch(&self.reaper, &Request::Exec(exec), &fds).await;
            drop((outcome_end, ends));
            (explain(result, outcome).await?, stdio)
        };
        let pid = launched.pid.ok_or(HelperError::Silent)?;
        let follow = Follow {
            death: self.reaper.watch(pid),
            container: container.cgroup.clone(),
            kill_rest: false,
        };
        Ok(Process::adopt(pid, cgroup.clone(), stdio, follow))
    }
}

/// What the process said about its command tells more than what libcontainer says about the process.
async fn explain<T>(result: Result<T, HelperError>, outcome: Outcome) -> Result<T, AgentError> {
    match result {
        Ok(launched) => Ok(launched),
        Err(error @ HelperError::Operation(_)) => match outcome.refusal().await {
            Some(refusal) => Err(refusal.into()),
            None => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// The container's own process with another command, and what libcontainer leaves undone for it.
fn process(
    spec: &ContainerSpec,
    request: &ExecProcessRequest,
) -> Result<(OciProcess, Confinement), AgentError> {
    let mut process = spec
        .process()
        .cloned()
        .ok_or(SpecError::Missing("process"))?;
    process.set_args(Some(request.args.clone()));
    process.set_terminal(Some(request.terminal));
    process.set_console_size(None);
    let seccomp = spec.seccomp().cloned();
    let privileged_filter = seccomp.is_some() && process.no_new_privileges() != Some(true);
    let capabilities = if privileged_filter {
        process.capabilities().clone()
    } else {
        None
    };
    if let Some(kept) = &capabilities {
        process.set_capabilities(Some(with_filter_capabilities(kept)));
    }
    Ok((
        process,
        Confinement {
            seccomp,
            capabilities,
            user: None,
        },
    ))
}

/// Leaves to the process's last steps what libcontainer does not do, joining a user namespace, and what
/// can only be done after it. Until then the process is root outside, with the one right to join. Answers
/// who owns its streams.
fn join_last(
    users: &Users,
    process: &mut OciProcess,
    confinement: &mut Confinement,
) -> Result<Uid, AgentError> {
    let user = process.user().clone();
    let (uid, gid) = (user.uid(), user.gid());
    let owner = users.ids.uids.outside(uid);
    let owner = owner.ok_or(UserError::NotMapped {
        what: "user",
        id: uid,
    })?;
    confinement.user = Some(MappedUser {
        namespace: users.namespace("user"),
        uid,
        gid,
        groups: user.additional_gids().clone().unwrap_or_default(),
    });
    // The ones that were set aside for the filter's sake, or else the process's own.
    if confinement.capabilities.is_none() {
        confinement.capabilities.clone_from(process.capabilities());
    }
    let mut root = UserBuilder::default().uid(0_u32).gid(0_u32);
    if let Some(umask) = user.umask() {
        root = root.umask(umask);
    }
    let failed = |_field| SpecError::Builder("user");
    process.set_user(root.build().map_err(failed)?);
    let join = || Capabilities::from([Capability::SysAdmin]);
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(join())
        .effective(join())
        .permitted(join())
        .inheritable(Capabilities::new())
        .ambient(Capabilities::new())
        .build()
        .map_err(|_field| SpecError::Builder("capabilities"))?;
    process.set_capabilities(Some(capabilities));
    Ok(Uid::from_raw(owner))
}

fn with_filter_capabilities(kept: &LinuxCapabilities) -> LinuxCapabilities {
    let mut all = kept.clone();
    let more = |set: &Option<std::collections::HashSet<Capability>>| {
        let mut set = set.clone().unwrap_or_default();
        set.extend(FILTER_CAPABILITIES);
        Some(set)
    };
    all.set_bounding(more(kept.bounding()));
    all.set_effective(more(kept.effective()));
    all.set_permitted(more(kept.permitted()));
    all
}

/// Files for one exec, deleted when it has started: libcontainer leaves sockets and links in it.
struct ExecFolder {
    path: PathBuf,
}

impl Drop for ExecFolder {
    fn drop(&mut self) {
        // Deleted with the container otherwise.
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl ExecFolder {
    fn new(path: PathBuf) -> Result<Self, AgentError> {
        fs::create_dir(&path).map_err(AgentError::file(&path))?;
        Ok(Self { path })
    }

    fn copy_state(&self, runtime: &RuntimeRequest) -> Result<RuntimeRequest, AgentError> {
        let container_id = runtime.container_id.clone();
        let folder = self.path.join(&container_id);
        fs::create_dir(&folder).map_err(AgentError::file(&folder))?;
        let state = folder.join(STATE_FILE);
        fs::copy(runtime.root.join(&container_id).join(STATE_FILE), &state)
            .map_err(AgentError::file(&state))?;
        Ok(RuntimeRequest {
            root: self.path.clone(),
            container_id,
        })
    }

    fn json(&self, name: &str, value: &impl Serialize) -> Result<PathBuf, AgentError> {
        let path = self.path.join(name);
        let text = serde_json::to_vec(value).map_err(std::io::Error::from);
        write(&path, text.map_err(AgentError::file(Path::new(name)))?)?;
        Ok(path)
    }
}
