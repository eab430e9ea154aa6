//! What to do when the rest of the work fails.

use futures_util::future::{BoxFuture, FutureExt};

type Step = Box<dyn FnOnce() -> BoxFuture<'static, Result<(), String>> + Send>;

/// The steps that lead back, each pushed by the step that leads forward.
///
/// Dropping a stack forgets its steps, which is what success does; failure calls
/// [`unwind`](Self::unwind).
#[derive(Default)]
pub(crate) struct Undo {
    steps: Vec<(&'static str, Step)>,
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_list()
            .entries(self.steps.iter().map(|(name, _)| name))
            .finish()
    }
}

impl Undo {
    /// Remembers how to undo what was just done, or is about to be: undoing must be harmless when
    /// it never happened.
    pub(crate) fn push<F, E>(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> F + Send + 'static,
    ) where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: std::error::Error,
    {
        let step = move || {
            step()
                .map(|result| result.map_err(|error| crate::chain::chain(&error)))
                .boxed()
        };
        self.steps.push((name, Box::new(step)));
    }

    /// Undoes everything, the last step first. A step that fails is logged and does not keep the
    /// others from being undone. True when none failed.
    pub(crate) async fn unwind(mut self) -> bool {
        let mut undone = true;
        while let Some((name, step)) = self.steps.pop() {
            if let Err(error) = step().await {
                tracing::warn!(step = name, error, "could not undo");
                undone = false;
            }
        }
        undone
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[tokio::test]
    async fn steps_are_undone_backwards_and_all_of_them() {
        let done = Arc::new(Mutex::new(Vec::new()));
        let mut undo = Undo::default();
        for number in 0..3 {
            let done = Arc::clone(&done);
            undo.push("step", move || async move {
                done.lock().unwrap().push(number);
                if number == 1 {
                    Err(std::io::Error::other("no"))
                } else {
                    Ok(())
                }
            });
        }
        assert!(!undo.unwind().await);
        assert_eq!(*done.lock().unwrap(), [2, 1, 0]);
    }
}
