//! Lists in messages that cannot grow too large.

use futures_util::{Stream, stream};
use tonic::Status;

/// Items in one message: some kilobytes each, so far below gRPC's 4 MiB.
const ITEMS_PER_MESSAGE: usize = 100;

/// `items` in their order, so many to a `message`. No items make no message.
pub(super) fn chunks<T, M>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send,
) -> impl Stream<Item = Result<M, Status>> + Send
where
    T: Send,
    M: Send,
{
    let mut items = items.into_iter();
    stream::iter(std::iter::from_fn(move || {
        let next: Vec<_> = items.by_ref().take(ITEMS_PER_MESSAGE).collect();
        (!next.is_empty()).then(|| Ok(message(next)))
    }))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    #[tokio::test]
    async fn nothing_is_lost_between_messages_and_nothing_makes_none() {
        let messages = |count: usize| {
            let sizes = chunks((0..count).collect(), |items: Vec<usize>| items.len());
            sizes.map(|size| size.unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(messages(250).await, [100, 100, 50]);
        assert_eq!(messages(100).await, [100]);
        assert!(messages(0).await.is_empty());
    }
}
