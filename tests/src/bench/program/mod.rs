//! A program that measures inside a guest: in a pod's container, and as all that a guest of QEMU's runs.
//!
//! ```text
//!  container.rs   pod ── container ── program ── its log ────┐
//!                                                            ├ lines ── parse() ──> figures
//!  alone.rs       QEMU ── PID 1 ── program ── a disk ────────┘
//! ```
//!
//! - [`inside`]: what such programs do alike.
//! - [`container`]: in a pod, which is ours.
//! - [`alone`]: under QEMU, the peer.

pub(super) mod alone;
pub(super) mod container;
pub mod inside;

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// Something that a program measures: its word, and how much of it there has to be.
pub(super) type Expected = (&'static str, u64);

/// How long each took.
pub(super) type Figures = Vec<Duration>;

/// How often one guest is tried: about every second one stands still.
const ATTEMPTS: u32 = 12;

/// How long a guest may take, on the clock of the lab: several times what it takes. A guest that spins takes
/// minutes for a second of it.
pub(super) const LIMIT: Duration = Duration::from_secs(3);

/// Measures once more when a guest has stood still, under either VMM: see `Clock` of `cargo xtask
/// bench`.
pub(super) fn patiently(what: &str, measure: impl Fn() -> Result<Figures>) -> Result<Figures> {
    for _ in 1..ATTEMPTS {
        match measure() {
            Ok(figures) => return Ok(figures),
            Err(error) => eprintln!("{what} is measured again: {error:#}"),
        }
    }
    measure()
}

/// What the program said, if it has said everything: in the order of `expected`, the last of which it
/// says last.
fn parse(text: &str, expected: &[Expected]) -> Option<Result<Figures>> {
    let time = |(what, amount): &Expected| {
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        let line = line.with_context(|| format!("no {what} in {text:?}"))?;
        let mut words = line.split_whitespace();
        let (nanos, told) = words.next().zip(words.next()).context("two numbers")?;
        ensure!(told == amount.to_string(), "{line:?} of {what}");
        Ok(Duration::from_nanos(nanos.parse()?))
    };
    let (last, _) = expected.last()?;
    let (_, end) = text.split_once(last)?;
    end.contains('\n')
        .then(|| expected.iter().map(time).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_count_when_all_are_there_and_of_the_right_amounts() {
        let expected = [("tar_cold", 70), ("tar_warm", 70), ("random", 4096)];
        let text = "tar_cold 3000 70\ntar_warm 2000 70\nrandom 1000 4096";
        assert!(parse(text, &expected).is_none(), "the last line may go on");
        let figures = parse(&format!("{text}\n\0\0"), &expected).unwrap().unwrap();
        assert_eq!(figures, [3, 2, 1].map(Duration::from_micros));
        let wrong = format!("{text}\n").replace("2000 70", "2000 7");
        assert!(parse(&wrong, &expected).unwrap().is_err());
    }
}
