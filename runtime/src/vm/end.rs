//! How a machine ended.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::printable;
use crate::clock;

/// The VMM's last words, in the sandbox's folder.
const EXIT_FILE: &str = "exit.json";
/// More of them is not read, in bytes.
const EXIT_MAX: u64 = 64 << 10;

/// How and when a machine ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VmEnd {
    /// Why.
    pub(crate) reason: EndReason,
    /// More about it, for people; may be empty.
    #[serde(default)]
    pub(crate) message: String,
    /// When, in nanoseconds since the epoch.
    #[serde(default = "clock::now_ns")]
    pub(crate) at_ns: i64,
}

/// Why a machine ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum EndReason {
    /// The guest powered itself off.
    PowerOff,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The guest asked for a reset.
    Reset,
    /// The guest's processor gave up.
    TripleFault,
    /// The VMM was told to end it.
    ShutDown,
    /// The VMM met an error.
    Error,
    /// The VMM left no word: it was killed, or crashed.
    Killed,
}

impl fmt::Display for VmEnd {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.reason {
            EndReason::PowerOff => "the guest powered off",
            EndReason::GuestPanic => "the guest's kernel panicked",
            EndReason::Reset => "the guest reset itself",
            EndReason::TripleFault => "the guest's processor took a triple fault",
            EndReason::ShutDown => "it was shut down",
            EndReason::Error => "the VMM failed",
            EndReason::Killed => "the VMM was killed",
        })?;
        if self.message.is_empty() {
            return Ok(());
        }
        write!(formatter, ": {}", self.message)
    }
}

impl VmEnd {
    /// Without last words.
    pub(super) fn killed() -> Self {
        Self {
            reason: EndReason::Killed,
            message: String::new(),
            at_ns: clock::now_ns(),
        }
    }

    /// What the VMM left in its folder; killed when it left nothing that makes sense. Blocking.
    pub(super) fn read(dir: &Path) -> Self {
        let read = || {
            let mut bytes = Vec::new();
            File::open(dir.join(EXIT_FILE))
                .ok()?
                .take(EXIT_MAX)
                .read_to_end(&mut bytes)
                .ok()?;
            serde_json::from_slice::<Self>(&bytes).ok()
        };
        let Some(mut end) = read() else {
            return Self::killed();
        };
        end.message = printable(&end.message);
        end.at_ns = end.at_ns.clamp(0, clock::now_ns());
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_the_vmm_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let words = r#"{"reason":"guest-panic","message":"Oops\n<0>","at_ns":5}"#;
        std::fs::write(dir.path().join(EXIT_FILE), words).unwrap();
        let end = VmEnd::read(dir.path());
        assert_eq!(end.reason, EndReason::GuestPanic);
        assert_eq!(end.to_string(), "the guest's kernel panicked: Oops <0>");
        assert_eq!(end.at_ns, 5);
    }

    #[test]
    fn no_words_and_nonsense_mean_killed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(VmEnd::read(dir.path()).reason, EndReason::Killed);
        std::fs::write(dir.path().join(EXIT_FILE), "{").unwrap();
        assert_eq!(VmEnd::read(dir.path()).reason, EndReason::Killed);
    }
}
