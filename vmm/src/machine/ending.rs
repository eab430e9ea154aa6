//! How a guest ends, and the record that tells the daemon.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// Name of the record in the sandbox's directory.
const FILE_NAME: &str = "exit.json";
/// Name under which it is written first.
const TEMPORARY_NAME: &str = "exit.json.tmp";

/// Why the guest no longer runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest powered itself off.
    PowerOff,
    /// The guest's kernel panicked and said so.
    GuestPanic,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU could not even deliver a double fault.
    TripleFault,
    /// `ShutDown` was called.
    ShutDown,
    /// The machine failed under the guest; the text says how.
    Error(String),
}

/// What the file holds.
#[derive(Debug, Serialize)]
struct Record<'a> {
    reason: &'static str,
    message: &'a str,
    /// Wall clock, nanoseconds since the epoch.
    at_ns: u64,
}

impl Ending {
    /// The word for it in the record.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::PowerOff => "power-off",
            Self::GuestPanic => "guest-panic",
            Self::Reset => "reset",
            Self::TripleFault => "triple-fault",
            Self::ShutDown => "shut-down",
            Self::Error(_) => "error",
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::PowerOff => "the guest powered off",
            Self::GuestPanic => "the guest's kernel panicked",
            Self::Reset => "the guest reset itself",
            Self::TripleFault => "a virtual processor of the guest took a triple fault",
            Self::ShutDown => "the machine was shut down",
            Self::Error(message) => message,
        }
    }

    /// Somebody wanted it to end like this.
    pub(crate) fn is_orderly(&self) -> bool {
        matches!(self, Self::PowerOff | Self::ShutDown)
    }

    /// Writes the record into `dir`, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the directory cannot be written to.
    pub(crate) fn record(&self, dir: &Path) -> io::Result<()> {
        let at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let record = Record {
            reason: self.reason(),
            message: self.message(),
            at_ns: u64::try_from(at.as_nanos()).unwrap_or(u64::MAX),
        };
        let temporary = dir.join(TEMPORARY_NAME);
        let mut file = File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(&record)?)?;
        file.sync_all()?;
        std::fs::rename(&temporary, dir.join(FILE_NAME))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_holds_reason_message_and_time() {
        let dir = tempfile::tempdir().unwrap();
        Ending::Error("no more".to_owned())
            .record(dir.path())
            .unwrap();
        let bytes = std::fs::read(dir.path().join("exit.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(json["reason"], "error");
        assert_eq!(json["message"], "no more");
        assert!(json["at_ns"].as_u64().unwrap() > 1_600_000_000_000_000_000);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_power_off_and_shut_down_are_orderly() {
        assert!(Ending::PowerOff.is_orderly() && Ending::ShutDown.is_orderly());
        let others = [
            Ending::GuestPanic,
            Ending::Reset,
            Ending::TripleFault,
            Ending::Error(String::new()),
        ];
        assert!(others.iter().all(|ending| !ending.is_orderly()));
    }
}
