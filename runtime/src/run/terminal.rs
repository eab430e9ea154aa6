//! The terminal in front of the user, handed over to the command in the guest.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::streaming::channel::TerminalSize;

/// A terminal in raw mode: every key goes to the command. Dropped, it is as it was.
#[derive(Debug)]
pub(super) struct RawTerminal {
    terminal: OwnedFd,
    before: Termios,
}

impl RawTerminal {
    /// Puts a terminal into raw mode.
    ///
    /// # Errors
    ///
    /// When it is no terminal.
    pub(super) fn new(terminal: BorrowedFd<'_>) -> Result<Self, Errno> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        let terminal = rustix::io::fcntl_dupfd_cloexec(terminal, 0)?;
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // It fails when the terminal is gone, and then there is nothing to restore.
        let _gone = tcsetattr(&self.terminal, OptionalActions::Drain, &self.before);
    }
}

/// The size of a terminal; `None` when it is none, or does not know.
pub(super) fn size(terminal: BorrowedFd<'_>) -> Option<TerminalSize> {
    let size = tcgetwinsize(terminal).ok()?;
    let known = size.ws_row > 0 && size.ws_col > 0;
    known.then_some(TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::pty::{Winsize, openpty};
    use rustix::termios::LocalModes;

    use super::*;

    #[test]
    fn raw_mode_passes_every_key_and_is_undone() {
        let pty = openpty(None, None).unwrap();
        let flags = || tcgetattr(&pty.slave).unwrap().local_modes;
        let before = flags();
        assert!(before.contains(LocalModes::ICANON | LocalModes::ISIG));
        let raw = RawTerminal::new(pty.slave.as_fd()).unwrap();
        let keys = LocalModes::ICANON | LocalModes::ISIG | LocalModes::ECHO;
        assert!(!flags().intersects(keys));
        drop(raw);
        assert_eq!(flags(), before);
    }

    #[test]
    fn size_is_the_terminals() {
        let size_of_pty = Winsize {
            ws_row: 24,
            ws_col: 80,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(&size_of_pty, None).unwrap();
        let expect = TerminalSize {
            columns: 80,
            rows: 24,
        };
        assert_eq!(size(pty.slave.as_fd()), Some(expect));
    }

    #[test]
    fn file_is_no_terminal() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(size(file.as_fd()), None);
        assert_eq!(RawTerminal::new(file.as_fd()).unwrap_err(), Errno::NOTTY);
    }
}
