//! One run of one plugin (specification, section 2): its configuration on standard input, parameters
//! in the environment, an answer on standard output.
#![expect(
    unsafe_code,
    reason = "a hook between fork and exec ties a plugin's life to the daemon's"
)]

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::unistd::{AccessFlags, access};
use rustix::process::{Pid, Signal, kill_process_group, set_parent_process_death_signal};
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use super::Plugins;
use super::list::Plugin;

/// Most of a plugin's answer, in bytes.
const ANSWER_MAX: u64 = 1 << 20;
/// Most of what it prints beside that, in bytes.
const COMPLAINT_MAX: u64 = 64 << 10;
/// Most of its words that get into an error, in characters.
const MESSAGE_MAX: usize = 1024;
/// Where plugins find iptables and the like, beside the daemon's own PATH.
const SBIN: &str = "/usr/sbin:/sbin";

/// A plugin did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PluginError {
    /// There is no such program.
    #[error("the CNI plugin {plugin:?} is not in {}", listed(dirs))]
    Missing {
        /// Its name.
        plugin: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// It could not be run.
    #[error("running the CNI plugin {plugin:?}")]
    Run {
        /// Its name.
        plugin: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It took too long, and was killed.
    #[error("the CNI plugin {plugin:?} did not end {verb} within {} ms", limit.as_millis())]
    TimedOut {
        /// Its name.
        plugin: String,
        /// What it was to do.
        verb: &'static str,
        /// How long it had.
        limit: Duration,
    },
    /// Nobody waits for it any more, and it was killed.
    #[error("the CNI plugin {0:?} was stopped: the request was cancelled")]
    Cancelled(String),
    /// It printed more than any answer has.
    #[error("the CNI plugin {0:?} printed over {ANSWER_MAX} bytes")]
    TooMuch(String),
    /// It says that it failed.
    #[error("the CNI plugin {plugin:?} failed {verb}: {message}")]
    Failed {
        /// Its name.
        plugin: String,
        /// What it was to do.
        verb: &'static str,
        /// The specification's number of its error, if it gave one.
        code: Option<u32>,
        /// What it said.
        message: String,
    },
    /// Its answer is not JSON.
    #[error("the CNI plugin {plugin:?} answered {verb} with something else than a result")]
    Answer {
        /// Its name.
        plugin: String,
        /// What it was to do.
        verb: &'static str,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Error codes of the specification ("Error Codes") that mean something to a caller.
impl PluginError {
    /// The configuration cannot work: it is for the administrator to change.
    pub(crate) const INVALID_CONFIG: u32 = 7;
    /// Something is not ready that may be later.
    pub(crate) const TRY_AGAIN: u32 = 11;
    /// The plugin is not available.
    pub(crate) const NOT_AVAILABLE: u32 = 50;
    /// It is not available, and existing containers have limited connectivity.
    pub(crate) const LIMITED: u32 = 51;
}

fn listed(dirs: &[PathBuf]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    dirs.join(" or ")
}

/// What a plugin is asked.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// `ADD`, `DEL` and so on.
    pub(super) verb: &'static str,
    /// `CNI_CONTAINERID` and so on, without `CNI_COMMAND` and `CNI_PATH`.
    pub(super) parameters: Vec<(&'static str, String)>,
    /// Stops it early.
    pub(super) cancel: &'a CancellationToken,
}

/// The specification's form of an error ("Error").
#[derive(Debug, Deserialize)]
struct Complaint {
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Plugins {
    /// Runs a plugin to its end; what it printed.
    pub(super) async fn run(
        &self,
        plugin: &Plugin,
        config: &Value,
        call: &Call<'_>,
    ) -> Result<Vec<u8>, PluginError> {
        let name = || plugin.kind.clone();
        let failed = |source| PluginError::Run {
            plugin: name(),
            source,
        };
        let program = self.find(&plugin.kind)?;
        let mut running = Running::start(&program, self, call).map_err(failed)?;
        let ended = tokio::select! {
            biased;
            () = call.cancel.cancelled() => return Err(PluginError::Cancelled(name())),
            ended = tokio::time::timeout(self.limit, running.finish(config.to_string())) => ended,
        };
        let Ok(ended) = ended else {
            return Err(PluginError::TimedOut {
                plugin: name(),
                verb: call.verb,
                limit: self.limit,
            });
        };
        let Ended {
            status,
            answer,
            complaint,
        } = ended.map_err(failed)?;
        if answer.len() as u64 > ANSWER_MAX {
            return Err(PluginError::TooMuch(name()));
        }
        if !complaint.is_empty() {
            tracing::debug!(
                plugin = plugin.kind,
                verb = call.verb,
                said = printable(&complaint)
            );
        }
        if status.success() {
            return Ok(answer);
        }
        Err(refusal(plugin, call.verb, status, &answer, &complaint))
    }

    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, PluginError> {
        let candidates = self.dirs.iter().map(|dir| dir.join(plugin));
        let is_program = |path: &PathBuf| path.is_file() && access(path, AccessFlags::X_OK).is_ok();
        candidates
            .into_iter()
            .find(is_program)
            .ok_or_else(|| PluginError::Missing {
                plugin: plugin.to_owned(),
                dirs: self.dirs.clone(),
            })
    }

    fn path(&self) -> String {
        let dirs: Vec<_> = self
            .dirs
            .iter()
            .map(|dir| dir.display().to_string())
            .collect();
        dirs.join(":")
    }
}

/// A plugin's process and its children. Dropping it kills them.
struct Running {
    child: Child,
    group: Option<Pid>,
}

struct Ended {
    status: ExitStatus,
    answer: Vec<u8>,
    complaint: Vec<u8>,
}

impl Running {
    fn start(program: &Path, plugins: &Plugins, call: &Call<'_>) -> io::Result<Self> {
        let search = std::env::var("PATH").map_or(SBIN.into(), |path| format!("{path}:{SBIN}"));
        let mut command = Command::new(program);
        // A plugin that goes on without the daemon would be overtaken by the next daemon's DEL.
        let hook = || Ok(set_parent_process_death_signal(Some(Signal::KILL))?);
        // SAFETY: between fork and exec the hook makes one system call, and allocates nothing.
        unsafe { command.pre_exec(hook) };
        // Plugins that talk to a cluster find it through the daemon's environment.
        let child = command
            .env("PATH", search)
            .env("CNI_COMMAND", call.verb)
            .env("CNI_PATH", plugins.path())
            .envs(call.parameters.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok());
        Ok(Self {
            child,
            group: group.and_then(Pid::from_raw),
        })
    }

    async fn finish(&mut self, config: String) -> io::Result<Ended> {
        let (stdin, stdout, stderr) = (
            self.child.stdin.take(),
            self.child.stdout.take(),
            self.child.stderr.take(),
        );
        let told = async {
            let Some(mut stdin) = stdin else { return };
            // A plugin that does not read it all says so in its answer.
            let _ignored = stdin.write_all(config.as_bytes()).await;
        };
        let ((), answer, complaint) =
            tokio::join!(told, read(stdout, ANSWER_MAX), read(stderr, COMPLAINT_MAX));
        let (answer, complaint) = (answer?, complaint?);
        let status = self.child.wait().await?;
        self.group = None;
        Ok(Ended {
            status,
            answer,
            complaint,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The group's number is its first process's, which is not collected before.
        if let Some(group) = self.group {
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

/// At most `most` bytes and one, which tells that there are more; the rest is thrown away.
async fn read(pipe: Option<impl AsyncRead + Unpin>, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        (&mut pipe).take(most + 1).read_to_end(&mut bytes).await?;
        tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await?;
    }
    Ok(bytes)
}

fn refusal(
    plugin: &Plugin,
    verb: &'static str,
    status: ExitStatus,
    answer: &[u8],
    complaint: &[u8],
) -> PluginError {
    let said = serde_json::from_slice::<Complaint>(answer).ok();
    let (code, message) = match said {
        Some(Complaint { code, msg, details }) if !(msg.is_empty() && details.is_empty()) => {
            let both = !msg.is_empty() && !details.is_empty();
            let colon = if both { ": " } else { "" };
            (Some(code), format!("{msg}{colon}{details}"))
        }
        _ => {
            let words = if complaint.trim_ascii().is_empty() {
                answer
            } else {
                complaint
            };
            (
                None,
                format!("{status}: {}", String::from_utf8_lossy(words)),
            )
        }
    };
    PluginError::Failed {
        plugin: plugin.kind.clone(),
        verb,
        code,
        message: printable(message.as_bytes()),
    }
}

/// One line of bounded length.
fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars()
        .filter(|letter| !letter.is_control())
        .take(MESSAGE_MAX)
        .collect()
}
