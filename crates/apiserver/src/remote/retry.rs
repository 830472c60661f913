//! Asking again, less and less often.

use std::time::Duration;

use ::http::StatusCode;
use bytes::Bytes;

use super::{Remote, Reply, Unreachable};

/// How a failed call is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub initial: Duration,
    pub factor: f64,
    /// A share of the delay that is added at random.
    pub jitter: f64,
    /// Calls in all.
    pub steps: u32,
}

impl Default for Backoff {
    /// What upstream's webhooks do.
    fn default() -> Self {
        Self {
            initial: Duration::from_millis(500),
            factor: 1.5,
            jitter: 0.2,
            steps: 5,
        }
    }
}

impl Backoff {
    /// The delays between the calls.
    pub fn delays(self) -> impl Iterator<Item = Duration> {
        let mut delay = self.initial;
        (1..self.steps).map(move |_| {
            let jitter = rand::random::<f64>() * self.jitter;
            let this = delay.mul_f64(1.0 + jitter);
            delay = delay.mul_f64(self.factor);
            this
        })
    }

    /// Posts until there is an answer that is not for another attempt.
    ///
    /// # Errors
    /// Of the last attempt.
    pub async fn post(
        self,
        remote: &Remote,
        query: &str,
        body: &Bytes,
        timeout: Duration,
    ) -> Result<Reply, Unreachable> {
        let mut delays = self.delays();
        loop {
            let answered = remote.post(query, body.clone(), timeout).await;
            let again = match &answered {
                Ok(reply) => wants_retry(reply.status),
                Err(error) => !error.timed_out,
            };
            match delays.next() {
                Some(delay) if again => tokio::time::sleep(delay).await,
                _ => return answered,
            }
        }
    }
}

fn wants_retry(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_end() {
        let delays: Vec<_> = Backoff::default().delays().collect();
        assert_eq!(delays.len(), 4);
        assert!(delays[0] >= Duration::from_millis(500) && delays[0] < Duration::from_millis(601));
        assert!(delays[3] > delays[0]);
        assert!(wants_retry(StatusCode::SERVICE_UNAVAILABLE) && !wants_retry(StatusCode::OK));
    }
}
