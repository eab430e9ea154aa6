//! One-time tokens: a CRI answer hands one out in a URL, one client brings it back in time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::id::random_hex;

/// How long a token waits for its client.
const LIFETIME: Duration = Duration::from_secs(60);

/// Most tokens that wait at a time.
const WAITING_MAX: usize = 1024;

/// Things that wait, each under a token that nobody can guess.
#[derive(Debug)]
pub(super) struct Tokens<T> {
    waiting: Mutex<HashMap<String, Waiting<T>>>,
}

#[derive(Debug)]
struct Waiting<T> {
    until: Instant,
    value: T,
}

/// No token could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TokenError {
    /// [`WAITING_MAX`] tokens wait for their clients.
    #[error("{WAITING_MAX} streams wait for their clients; try again in a minute")]
    TooMany,
    /// The kernel's random generator failed.
    #[error("no random bytes for a token")]
    Random(#[source] std::io::Error),
}

impl<T> Tokens<T> {
    pub(super) fn new() -> Self {
        Self {
            waiting: Mutex::new(HashMap::new()),
        }
    }

    /// Keeps a value for [`LIFETIME`] and returns its token, 64 hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`TokenError`] when too many wait or no token could be made.
    pub(super) fn put(&self, value: T) -> Result<String, TokenError> {
        let token = random_hex().map_err(TokenError::Random)?;
        let now = Instant::now();
        let mut waiting = self.lock();
        waiting.retain(|_, entry| entry.until > now);
        if waiting.len() >= WAITING_MAX {
            return Err(TokenError::TooMany);
        }
        let until = now + LIFETIME;
        waiting.insert(token.clone(), Waiting { until, value });
        Ok(token)
    }

    /// Takes the token's value, once, if it is still there and `fits`.
    pub(super) fn take(&self, token: &str, fits: impl FnOnce(&T) -> bool) -> Option<T> {
        let now = Instant::now();
        let mut waiting = self.lock();
        let entry = waiting.get(token)?;
        if entry.until <= now || !fits(&entry.value) {
            return None;
        }
        waiting.remove(token).map(|entry| entry.value)
    }

    /// Nothing is left half-done under the lock, so a panic elsewhere does not spoil the map.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Waiting<T>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_taken_once() {
        let tokens = Tokens::new();
        let token = tokens.put(7).unwrap();
        assert_eq!(tokens.take(&token, |_| true), Some(7));
        assert_eq!(tokens.take(&token, |_| true), None);
    }

    #[test]
    fn token_stays_when_it_does_not_fit() {
        let tokens = Tokens::new();
        let token = tokens.put(7).unwrap();
        assert_eq!(tokens.take(&token, |value| *value == 8), None);
        assert_eq!(tokens.take(&token, |value| *value == 7), Some(7));
    }

    #[test]
    fn unknown_token_is_refused() {
        let tokens = Tokens::new();
        tokens.put(7).unwrap();
        assert_eq!(tokens.take("", |_| true), None);
        assert_eq!(tokens.take(&"0".repeat(64), |_| true), None);
    }

    #[tokio::test(start_paused = true)]
    async fn token_expires_and_makes_room() {
        let tokens = Tokens::new();
        let first = tokens.put(0).unwrap();
        for value in 1..WAITING_MAX {
            tokens.put(value).unwrap();
        }
        assert!(matches!(tokens.put(0), Err(TokenError::TooMany)));
        tokio::time::advance(LIFETIME).await;
        assert_eq!(tokens.take(&first, |_| true), None);
        assert!(tokens.put(0).is_ok());
    }
}
