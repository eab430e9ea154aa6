//! Where a run's time went.

use std::fmt;
use std::time::{Duration, Instant};

/// The phases of a run, in their order.
#[derive(Debug)]
pub(super) struct Timings {
    last: Instant,
    phases: Vec<(&'static str, Duration)>,
}

impl Timings {
    pub(super) fn begin() -> Self {
        Self {
            last: Instant::now(),
            phases: Vec::new(),
        }
    }

    /// A phase ends now.
    pub(super) fn end(&mut self, phase: &'static str) {
        self.end_at(phase, Instant::now());
    }

    /// A phase ended then; at once if that was before the phase began.
    pub(super) fn end_at(&mut self, phase: &'static str, at: Instant) {
        self.phases
            .push((phase, at.saturating_duration_since(self.last)));
        self.last = self.last.max(at);
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (phase, time) in &self.phases {
            writeln!(f, "{phase:<14}{:>9.3} s", time.as_secs_f64())?;
        }
        let total: Duration = self.phases.iter().map(|(_, time)| *time).sum();
        write!(f, "{:<14}{:>9.3} s", "total", total.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_add_up_to_the_total() {
        let mut timings = Timings::begin();
        let begun = timings.last;
        timings.end_at("pull", begun + Duration::from_millis(1500));
        timings.end_at("start", begun + Duration::from_millis(1750));
        timings.end_at("first output", begun + Duration::from_millis(1600));
        assert_eq!(
            timings.to_string(),
            "pull              1.500 s\n\
             start             0.250 s\n\
             first output      0.000 s\n\
             total             1.750 s"
        );
    }
}
