//! Signals by name and number, as image configurations and the CRI write them (x86-64).

use isopod_proto::cri;
use serde::{Deserialize, Serialize};

/// The first and last real-time signal that programs may use (glibc's numbering).
const REAL_TIME: (i32, i32) = (34, 64);

const NAMES: [(&str, i32); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];

/// A signal's number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Signal(i32);

impl Signal {
    /// What asks a process to end when nobody says otherwise.
    pub(crate) const TERM: Self = Self(15);
    /// What ends it.
    pub(crate) const KILL: Self = Self(9);

    /// The number.
    pub(crate) fn number(self) -> i32 {
        self.0
    }

    /// Reads `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3` or `RTMAX-1`, in either case.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i32>() {
            return (1..=REAL_TIME.1).contains(&number).then_some(Self(number));
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Some(Self(*number));
        }
        real_time(name).map(Self)
    }

    /// The signal that a CRI request names; `None` for the default.
    pub(crate) fn of_cri(signal: cri::Signal) -> Option<Self> {
        let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
        Self::parse(&name.replace("PLUS", "+").replace("MINUS", "-"))
    }

    /// The CRI's name for it.
    pub(crate) fn to_cri(self) -> cri::Signal {
        let all = i32::from(cri::Signal::Sigabrt)..=i32::from(cri::Signal::Sigrtmax);
        all.filter_map(|value| cri::Signal::try_from(value).ok())
            .find(|signal| Self::of_cri(*signal) == Some(self))
            .unwrap_or(cri::Signal::RuntimeDefault)
    }
}

fn real_time(name: &str) -> Option<i32> {
    let (base, offset) = if let Some(rest) = name.strip_prefix("RTMIN") {
        (REAL_TIME.0, rest)
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        (REAL_TIME.1, rest)
    } else {
        return None;
    };
    let offset = if offset.is_empty() {
        0
    } else {
        offset.parse::<i32>().ok()?
    };
    let number = base.checked_add(offset)?;
    (REAL_TIME.0..=REAL_TIME.1)
        .contains(&number)
        .then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_signal_is_read() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(Signal::parse(text), Some(Signal(number)), "{text}");
        }
        for text in [
            "", "SIG", "0", "65", "-1", "RTMIN+31", "RTMIN-1", "RTMAX1", "SIGX",
        ] {
            assert_eq!(Signal::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_signal_of_the_cri_has_a_number_and_a_way_back() {
        assert_eq!(Signal::of_cri(cri::Signal::RuntimeDefault), None);
        for value in 1..=i32::from(cri::Signal::Sigrtmax) {
            let signal = cri::Signal::try_from(value).unwrap();
            let number = Signal::of_cri(signal).unwrap_or_else(|| panic!("{signal:?}"));
            assert_eq!(Signal::of_cri(number.to_cri()), Some(number), "{signal:?}");
        }
        assert_eq!(Signal(37).to_cri(), cri::Signal::Sigrtminplus3);
    }
}
