//! Many calls in growing batches, so that a request that is refused (quota, webhook) is refused once and not
//! five hundred times.

use futures::future::join_all;

/// Call `call` up to `count` times in batches of 1, 2, 4, …; stop after the first batch with an error. Returns
/// the number of successes and the first error.
pub async fn slow_start_batch<F, Fut, E>(count: usize, call: F) -> (usize, Option<E>)
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    let mut done = 0;
    let mut batch = 1;
    let mut successes = 0;
    while done < count {
        let size = batch.min(count - done);
        let results = join_all((done..done + size).map(&call)).await;
        let mut first_error = None;
        for result in results {
            match result {
                Ok(()) => successes += 1,
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        if first_error.is_some() {
            return (successes, first_error);
        }
        done += size;
        batch *= 2;
    }
    (successes, None)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn stops_after_the_failing_batch() {
        for (count, fails_from, expected_calls, expected_successes) in [
            (10, 100, 10, 10),
            (10, 0, 1, 0),
            (10, 4, 7, 4),
            (0, 0, 0, 0),
        ] {
            let calls = AtomicUsize::new(0);
            let (successes, error) = slow_start_batch(count, |i| {
                calls.fetch_add(1, Ordering::SeqCst);
                async move {
                    if i < fails_from {
                        Ok(())
                    } else {
                        Err("refused")
                    }
                }
            })
            .await;
            assert_eq!(calls.load(Ordering::SeqCst), expected_calls);
            assert_eq!(successes, expected_successes);
            assert_eq!(error.is_some(), expected_successes < count);
        }
    }
}
