//! Which specs there are, from a run of critest that does nothing.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::report::{self, State};

/// The specs whose streams can go either way.
const STREAMING: &str = "[k8s.io] Streaming";

/// What carries the streams of a spec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    /// SPDY/3.1, and every spec without streams.
    Spdy,
    /// WebSocket.
    WebSocket,
}

impl Transport {
    /// Each of them.
    pub(super) const ALL: [Self; 2] = [Self::Spdy, Self::WebSocket];
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spdy => "spdy",
            Self::WebSocket => "websocket",
        })
    }
}

/// One spec, over one transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Spec {
    /// The name as ginkgo makes it: the texts of all that it is in, and its own.
    pub(super) name: String,
    /// The outermost of these texts.
    pub(super) group: String,
    /// What carries its streams.
    pub(super) transport: Transport,
}

/// What there is to run.
#[derive(Debug)]
pub(super) struct Specs {
    /// The names of all specs that critest has.
    pub(super) names: Vec<String>,
    /// Those that match the focus.
    pub(super) selected: Vec<Spec>,
}

/// Asks critest.
pub(super) fn all(tools: &Path, focus: &[String]) -> Result<Specs> {
    let folder = tempfile::tempdir().context("making a folder for the list of specs")?;
    let path = folder.path().join("specs.json");
    let mut critest = Command::new(tools.join("critest"));
    critest
        .arg("-ginkgo.dry-run")
        .arg(format!("-ginkgo.json-report={}", path.display()));
    for focus in focus {
        critest.arg(format!("-ginkgo.focus={focus}"));
    }
    let output = critest.output().context("starting critest")?;
    ensure!(
        output.status.success(),
        "critest does not list its specs: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    let all = report::read(&path)?;
    let mut selected = Vec::new();
    for spec in all.iter().filter(|spec| spec.state == State::Passed) {
        selected.extend(over_transports(&spec.name(), spec.group()));
    }
    Ok(Specs {
        names: all.iter().map(report::SpecReport::name).collect(),
        selected,
    })
}

fn over_transports(name: &str, group: &str) -> Vec<Spec> {
    let transports = if group == STREAMING {
        &Transport::ALL[..]
    } else {
        &[Transport::Spdy]
    };
    let spec = |&transport| Spec {
        name: name.to_owned(),
        group: group.to_owned(),
        transport,
    };
    transports.iter().map(spec).collect()
}
