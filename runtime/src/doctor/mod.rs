//! `isopod doctor`: can this machine run microVMs, and what to do if it cannot.
//!
//! Each check is a function from the [`Host`] and the configuration to a [`Check`]; none depends on
//! another, so that one run tells everything. They look and leave nothing behind. Blocking, on the
//! main thread; only the machine that proves KVM gets a thread, so that it cannot hang the rest.

mod cpu;
mod guest;
mod host;
mod kvm;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::chain::chain;
use crate::config::{Config, ConfigError};
use crate::version::OutputFormat;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Pods run, but something about them will not work, or soon not.
    Warn,
    /// No pod runs.
    Fail,
}

/// One check's result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    name: &'static str,
    verdict: Verdict,
    /// What was found.
    found: String,
    /// What to do about it; empty when there is nothing to do.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Warn,
            found: found.into(),
            advice: advice.into(),
        }
    }

    fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(name, found, advice)
        }
    }
}

/// Every check's result, in their order.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    ok: bool,
    checks: Vec<Check>,
}

/// Where the checks look; tests give them a folder of their own.
#[derive(Debug)]
struct Host {
    root: PathBuf,
}

impl Host {
    /// A file of this host, by its absolute path.
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// Checks this machine. A configuration that cannot be read is one of the problems; the other
/// checks then go by the defaults.
pub(crate) fn examine(config: Result<Config, ConfigError>) -> Report {
    let host = Host { root: "/".into() };
    let (configuration, config) = match config {
        Ok(config) => (Check::ok("configuration", "is valid"), config),
        Err(error) => {
            let advice = "correct the file; `isopod serve --print-default-config` shows every key";
            let check = Check::fail("configuration", chain(&error), advice);
            (check, Config::default())
        }
    };
    Report::new(vec![
        configuration,
        cpu::cpu(&host),
        kvm::device(&host, &config.vm.kvm),
        kvm::machine(&host, &config.vm.kvm),
        guest::vmm(&config.vm.vmm),
        guest::kernel(&config.vm.kernel),
        guest::root(&config.vm.root()),
        host::mkfs(),
        host::folder("root_dir", &config.root_dir, host::ROOT_DIR_FREE),
        host::folder("state_dir", &config.state_dir, host::STATE_DIR_FREE),
        host::memory(&host, config.vm.memory_mib),
        host::cgroup(&host),
        host::overlay(&host),
        host::tun(&host),
        host::cni(&host, &config.cni),
    ])
}

impl Report {
    fn new(checks: Vec<Check>) -> Self {
        let ok = checks.iter().all(|check| check.verdict != Verdict::Fail);
        Self { ok, checks }
    }

    /// Whether pods can run here.
    pub(crate) fn is_ok(&self) -> bool {
        self.ok
    }

    /// The report for people or for programs.
    pub(crate) fn print(&self, format: OutputFormat) -> String {
        match format {
            OutputFormat::Text => self.to_string(),
            OutputFormat::Json => {
                serde_json::to_string_pretty(self).expect("text and flags have a JSON form")
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for check in &self.checks {
            let verdict = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Fail => "FAIL",
            };
            let found = check.found.replace('\n', "\n                      ");
            writeln!(f, "{verdict:<5} {:<15} {found}", check.name)?;
            if !check.advice.is_empty() {
                writeln!(f, "      {:<15} -> {}", "", check.advice)?;
            }
        }
        match self.ok {
            true => write!(f, "\nThis machine can run microVMs."),
            false => write!(
                f,
                "\nThis machine cannot run microVMs: see each FAIL above."
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_makes_the_report_fail_and_a_warning_does_not() {
        let warned = vec![Check::ok("a", "x"), Check::warn("b", "y", "do z")];
        assert!(Report::new(warned.clone()).is_ok());
        let failed = [warned, vec![Check::fail("c", "v", "do w")]].concat();
        assert!(!Report::new(failed).is_ok());
    }

    #[test]
    fn report_says_what_to_do_in_both_formats() {
        let report = Report::new(vec![Check::ok("a", "x"), Check::fail("b", "y", "do z")]);
        let text = report.print(OutputFormat::Text);
        assert!(
            text.starts_with("ok    a               x\nFAIL  b               y\n"),
            "{text}"
        );
        assert!(text.contains("-> do z"), "{text}");
        let json: serde_json::Value =
            serde_json::from_str(&report.print(OutputFormat::Json)).unwrap();
        assert_eq!(json["ok"], false);
        assert_eq!(json["checks"][1]["verdict"], "fail");
        assert_eq!(json["checks"][1]["advice"], "do z");
    }

    #[test]
    fn broken_configuration_is_a_finding_and_the_other_checks_still_run() {
        let error = Config::load(Some(Path::new("/nonexistent/config.toml"))).unwrap_err();
        let report = examine(Err(error));
        assert!(!report.is_ok());
        assert_eq!(report.checks[0].verdict, Verdict::Fail);
        assert!(report.checks.len() > 10);
    }
}
