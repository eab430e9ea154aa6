//! How many processors' time is used at the moment.

use std::sync::{Mutex, PoisonError};

/// Least time between two samples that a rate is made of, nanoseconds.
const WINDOW_MIN_NS: u64 = 1_000_000_000;

/// Follows one group's processor time from sample to sample.
#[derive(Debug, Default)]
pub(crate) struct CpuRate(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Time of the sample and the processor time used up to it, nanoseconds.
    last: Option<(u64, u64)>,
    nano_cores: Option<u64>,
}

impl CpuRate {
    /// Takes a sample: the time on a clock that is never set, and the processor time used up to then,
    /// both in nanoseconds. The rate since the sample before, in billionths of a processor; that of the
    /// time before if that is less than a second ago; none at first.
    pub(crate) fn sample(&self, at_ns: u64, used_ns: u64) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((last_at, last_used)) = state.last else {
            state.last = Some((at_ns, used_ns));
            return None;
        };
        let (Some(elapsed), Some(used)) =
            (at_ns.checked_sub(last_at), used_ns.checked_sub(last_used))
        else {
            // Answers that overtook each other; or a guest that tells tales.
            state.last = Some((at_ns, used_ns));
            return state.nano_cores;
        };
        if elapsed >= WINDOW_MIN_NS {
            let rate = u128::from(used) * 1_000_000_000 / u128::from(elapsed);
            state.nano_cores = Some(u64::try_from(rate).unwrap_or(u64::MAX));
            state.last = Some((at_ns, used_ns));
        }
        state.nano_cores
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn half_a_processor_is_half_a_billion() {
        let rate = CpuRate::default();
        assert_eq!(rate.sample(10 * SECOND, 0), None);
        assert_eq!(rate.sample(12 * SECOND, SECOND), Some(SECOND / 2));
    }

    #[test]
    fn samples_in_quick_succession_do_not_make_a_rate_of_their_own() {
        let rate = CpuRate::default();
        rate.sample(0, 0);
        assert_eq!(rate.sample(SECOND / 2, SECOND), None);
        assert_eq!(rate.sample(2 * SECOND, 2 * SECOND), Some(SECOND));
        assert_eq!(rate.sample(2 * SECOND + 1, 3 * SECOND), Some(SECOND));
    }

    #[test]
    fn times_that_run_backwards_and_wild_ones_break_nothing() {
        let rate = CpuRate::default();
        rate.sample(u64::MAX, u64::MAX);
        assert_eq!(rate.sample(0, 0), None);
        assert_eq!(rate.sample(SECOND, u64::MAX), Some(u64::MAX));
    }
}
