//! The terminal in front of the user, handed over to the command in the guest.

#![expect(
    unsafe_code,
    reason = "the size of a terminal is asked for by an ioctl that has no safe wrapper"
)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

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
        cfmakeraw(&mut raw);
        let terminal = terminal
            .try_clone_to_owned()
            .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EBADF)))?;
        tcsetattr(&terminal, SetArg::TCSANOW, &raw)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // It fails when the terminal is gone, and then there is nothing to restore.
        let _gone = tcsetattr(self.terminal.as_fd(), SetArg::TCSADRAIN, &self.before);
    }
}

/// The size of a terminal; `None` when it is none, or does not know.
pub(super) fn size(terminal: BorrowedFd<'_>) -> Option<TerminalSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize to the pointer (ioctl_tty(2)), which is a live local's.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    let known = result == 0 && size.ws_row > 0 && size.ws_col > 0;
    known.then_some(TerminalSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

#[cfg(test)]
mod tests {
    use nix::pty::{Winsize, openpty};
    use nix::sys::termios::LocalFlags;

    use super::*;

    #[test]
    fn raw_mode_passes_every_key_and_is_undone() {
        let pty = openpty(None, None).unwrap();
        let flags = || tcgetattr(&pty.slave).unwrap().local_flags;
        let before = flags();
        assert!(before.contains(LocalFlags::ICANON | LocalFlags::ISIG));
        let raw = RawTerminal::new(pty.slave.as_fd()).unwrap();
        let keys = LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO;
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
        assert_eq!(RawTerminal::new(file.as_fd()).unwrap_err(), Errno::ENOTTY);
    }
}
