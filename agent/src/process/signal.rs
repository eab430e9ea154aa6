//! Signals, real-time ones included.
#![expect(
    unsafe_code,
    reason = "kill(2) with a real-time signal has no safe wrapper"
)]

use std::io;

use nix::unistd::Pid;

/// A signal's number, 1 to 64 (`signal(7)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal(i32);

/// A number that is no signal.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("signal {0}: must be 1 to {max}", max = Signal::MAX)]
pub(crate) struct SignalError(i32);

impl Signal {
    /// Ends a process without asking it.
    pub(crate) const KILL: Self = Self(libc::SIGKILL);
    /// Asks a process to end.
    #[cfg(test)]
    pub(crate) const TERM: Self = Self(libc::SIGTERM);
    /// The last real-time signal.
    const MAX: i32 = 64;

    /// Checks a number that a caller sent.
    ///
    /// # Errors
    ///
    /// [`SignalError`] when it is out of range.
    pub(crate) fn new(number: i32) -> Result<Self, SignalError> {
        if (1..=Self::MAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(SignalError(number))
        }
    }

    /// Sends the signal to one process. One that is gone had nothing left to do.
    ///
    /// # Errors
    ///
    /// What kill(2) says.
    pub(crate) fn send(self, pid: Pid) -> io::Result<()> {
        // 0 and negative numbers address groups, and the agent's own.
        if pid.as_raw() <= 1 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: kill takes two integers and touches no memory of ours.
        if unsafe { libc::kill(pid.as_raw(), self.0) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ESRCH) {
            Ok(())
        } else {
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_1_to_64_are_refused() {
        assert!(Signal::new(0).is_err());
        assert!(Signal::new(-9).is_err());
        assert!(Signal::new(65).is_err());
        assert!(Signal::new(64).is_ok());
    }

    #[test]
    fn process_groups_and_init_are_never_addressed() {
        for pid in [-1, 0, 1] {
            assert!(Signal::KILL.send(Pid::from_raw(pid)).is_err());
        }
    }
}
