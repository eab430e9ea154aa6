//! How fast packets may go in one direction: a bucket that fills with bytes at a constant rate and
//! holds a second's worth. All pairs of queues of an interface draw from the same.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Least that a bucket holds, in bytes: the largest packet goes through at any rate.
const CAPACITY_MIN: u64 = super::FRAME_MAX as u64;

/// A bucket.
#[derive(Debug)]
struct Bucket {
    /// Bytes per second.
    rate: u64,
    capacity: i64,
    /// Bytes that may go; below zero after a packet that was larger than what was there.
    level: i64,
    filled_at: Instant,
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let nanoseconds = now.saturating_duration_since(self.filled_at).as_nanos();
        let bytes = nanoseconds * u128::from(self.rate) / 1_000_000_000;
        // Less than a byte's worth of time is not lost: it stays to be counted.
        if bytes > 0 {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            self.level = self.level.saturating_add(bytes).min(self.capacity);
            self.filled_at = now;
        }
    }

    /// How long until something may go.
    fn wait(&self) -> Option<Duration> {
        if self.level > 0 {
            return None;
        }
        let missing = self.level.unsigned_abs() + 1;
        let nanoseconds = u128::from(missing) * 1_000_000_000 / u128::from(self.rate);
        let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
        Some(Duration::from_nanos(nanoseconds).max(Duration::from_millis(1)))
    }
}

/// One direction of an interface; without a rate it lets everything through. Clones share a bucket.
#[derive(Debug, Clone, Default)]
pub(super) struct Limiter(Option<Arc<Mutex<Bucket>>>);

impl Limiter {
    /// Of so many bits per second; 0: as many as there are.
    pub(super) fn new(bits_per_second: u64) -> Self {
        if bits_per_second == 0 {
            return Self(None);
        }
        let rate = (bits_per_second / 8).max(1);
        let capacity = i64::try_from(rate.max(CAPACITY_MIN)).unwrap_or(i64::MAX);
        Self(Some(Arc::new(Mutex::new(Bucket {
            rate,
            capacity,
            level: capacity,
            filled_at: Instant::now(),
        }))))
    }

    /// When the next packet may go; `None`: now.
    pub(super) fn blocked_until(&self) -> Option<Instant> {
        self.0.as_ref()?;
        self.blocked_at(Instant::now())
    }

    fn blocked_at(&self, now: Instant) -> Option<Instant> {
        let mut bucket = self
            .0
            .as_ref()?
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        bucket.fill(now);
        bucket.wait().map(|wait| now + wait)
    }

    /// A packet went.
    pub(super) fn take(&self, bytes: usize) {
        if let Some(bucket) = &self.0 {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            bucket.level = bucket.level.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_flow_at_the_rate_after_the_first_seconds_worth() {
        let limiter = Limiter::new(8_000_000);
        let start = Instant::now();
        let mut now = start;
        let mut sent = 0;
        while now < start + Duration::from_secs(10) {
            match limiter.blocked_at(now) {
                None => {
                    limiter.take(1500);
                    sent += 1500;
                }
                Some(until) => {
                    assert!(until > now);
                    now = until;
                }
            }
        }
        // 1 MB per second for ten seconds, and the bucket's worth.
        assert!((10_900_000..=11_100_000).contains(&sent), "{sent}");
    }

    #[test]
    fn the_largest_packet_passes_at_the_lowest_rate() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        assert_eq!(limiter.blocked_at(now), None);
        limiter.take(super::super::FRAME_MAX);
        assert!(limiter.blocked_at(now).is_some());
    }

    #[test]
    fn without_a_rate_nothing_waits() {
        let limiter = Limiter::new(0);
        limiter.take(usize::MAX);
        assert_eq!(limiter.blocked_until(), None);
    }
}
