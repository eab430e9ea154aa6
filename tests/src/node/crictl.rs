//! The real crictl, with a configuration of its own.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Node;
use crate::environment;
use crate::process::command;

/// crictl, set up for one node.
#[derive(Debug)]
pub struct Crictl<'a> {
    node: &'a Node,
    program: PathBuf,
    config: PathBuf,
}

/// crictl failed. The message has gRPC's code and description as crictl prints them.
#[derive(Debug)]
pub struct CrictlError {
    arguments: String,
    /// Exit status.
    pub code: Option<i32>,
    /// What it printed on standard error.
    pub message: String,
}

impl std::fmt::Display for CrictlError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "crictl {}: exit status {:?}: {}",
            self.arguments,
            self.code,
            self.message.trim()
        )
    }
}

impl std::error::Error for CrictlError {}

impl<'a> Crictl<'a> {
    pub(super) fn new(node: &'a Node) -> Result<Self> {
        let program = environment::path(environment::TOOLS)?.join("crictl");
        let config = node.folder().join("crictl.yaml");
        let endpoint = format!("unix://{}", node.socket().display());
        fs::write(
            &config,
            format!(
                "runtime-endpoint: {endpoint}\nimage-endpoint: {endpoint}\ntimeout: 300\n\
                 pull-image-on-create: false\n"
            ),
        )?;
        Ok(Self {
            node,
            program,
            config,
        })
    }

    /// Runs crictl; its standard output.
    ///
    /// # Errors
    /// [`CrictlError`] when its exit status is not 0.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        if output.status.success() {
            return String::from_utf8(output.stdout).context("crictl's output");
        }
        Err(CrictlError {
            arguments: arguments.join(" "),
            code: output.status.code(),
            message: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
        .into())
    }

    /// Runs crictl; its output, and how it ended.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn output(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments).output().context("running crictl")
    }

    /// crictl, to be started beside the test.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut crictl = command(&self.program);
        crictl.arg("--config").arg(&self.config).args(arguments);
        crictl
    }

    /// Runs crictl, which must fail.
    ///
    /// # Errors
    /// It succeeded, or cannot be run.
    pub fn fails(&self, arguments: &[&str]) -> Result<CrictlError> {
        match self.run(arguments) {
            Ok(output) => anyhow::bail!("crictl {arguments:?} succeeded: {output}"),
            Err(error) => error.downcast(),
        }
    }

    /// Runs crictl, which prints one id.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn id(&self, arguments: &[&str]) -> Result<String> {
        let id = self.run(arguments)?.trim().to_owned();
        anyhow::ensure!(!id.is_empty() && !id.contains('\n'), "not an id: {id:?}");
        self.node.remember(&id);
        Ok(id)
    }

    /// Runs crictl with `--output json`.
    ///
    /// # Errors
    /// As [`Self::run`]; the output is not JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let (verb, rest) = arguments.split_first().context("no arguments")?;
        let arguments = [&[verb, "--output", "json"], rest].concat();
        serde_json::from_str(&self.run(&arguments)?).context("crictl's JSON")
    }

    /// Writes a JSON file for crictl and tells its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn file(&self, name: &str, value: &Value) -> Result<String> {
        let path = self.node.folder().join(name);
        fs::write(&path, serde_json::to_vec_pretty(value)?)?;
        Ok(path.display().to_string())
    }
}
