//! Many things at once, without a task for each.

use std::{future::poll_fn, task::Poll};

/// The outputs of all futures, in order. They go on at once: one that waits for long keeps no other from its work.
pub(crate) async fn all<F: Future>(futures: impl IntoIterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<F> = futures.into_iter().collect();
    if futures.len() <= 1
        && let Some(only) = futures.pop()
    {
        return vec![only.await];
    }
    let mut running: Vec<_> = futures
        .into_iter()
        .map(|future| (Some(Box::pin(future)), None))
        .collect();
    poll_fn(|context| {
        let mut is_done = true;
        for (future, output) in &mut running {
            if let Some(pending) = future {
                match pending.as_mut().poll(context) {
                    Poll::Ready(ready) => (*future, *output) = (None, Some(ready)),
                    Poll::Pending => is_done = false,
                }
            }
        }
        if is_done { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    running.into_iter().filter_map(|(_, output)| output).collect()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn all_go_on_at_once_and_their_outputs_come_in_order() {
        assert!(all(Vec::<std::future::Ready<u8>>::new()).await.is_empty());
        assert_eq!(all(vec![std::future::ready(1)]).await, [1]);
        let (first, waits) = oneshot::channel();
        let (second, ends) = oneshot::channel();
        let mut first = Some(first);
        let futures: Vec<std::pin::Pin<Box<dyn Future<Output = u8>>>> = vec![
            Box::pin(async { waits.await.unwrap() }),
            Box::pin(async { ends.await.unwrap() }),
            Box::pin(async {
                second.send(2).unwrap();
                first.take().unwrap().send(1).unwrap();
                3
            }),
        ];
        assert_eq!(all(futures).await, [1, 2, 3]);
    }
}
