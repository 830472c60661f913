//! What a client may take up: time, streams, and the server's patience when it stops.

use std::time::Duration;

use clap::ArgAction;
use fluyt_api::{Error, Reason};

use crate::go_bool;
use crate::request::RequestInfo;

/// Flags that bound what clients take up.
#[derive(clap::Args, Clone, Debug)]
pub struct Limits {
    /// How long a request may take that is not a watch or a connection.
    #[arg(long, default_value = "1m0s", value_parser = duration)]
    pub request_timeout: Duration,
    /// Seconds that a watch lasts at least when its client does not say; up to twice that, so that clients spread out.
    #[arg(long, default_value_t = 1800)]
    pub min_request_timeout: u64,
    /// Requests that an HTTP/2 connection may carry at once; 0 for the default, 100.
    #[arg(long, default_value_t = 0)]
    pub http2_max_streams_per_connection: u32,
    /// Share of HTTP/2 requests, up to 0.02, after which the client is asked to connect anew, so that clients spread over
    /// servers.
    #[arg(long, default_value_t = 0.0, value_parser = chance)]
    pub goaway_chance: f64,
    /// How long the server serves on after it was told to stop, not ready any more, so that load balancers notice.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub shutdown_delay_duration: Duration,
    /// How many objects of a collection are deleted at a time.
    #[arg(long, default_value_t = 1)]
    pub delete_collection_workers: usize,
    /// Bytes a second that a connection to a pod, service or node may carry in each direction once it has switched protocols;
    /// 0 for no bound.
    #[arg(long, default_value_t = 0)]
    pub max_connection_bytes_per_sec: u64,
    /// When stopping, listen on until all requests are answered, and ask new ones to come again later.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    pub shutdown_send_retry_after: bool,
    /// How long it may take until all watches have ended when the server stops; 0 ends them at once.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub shutdown_watch_termination_grace_period: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(60),
            min_request_timeout: 1800,
            http2_max_streams_per_connection: 0,
            goaway_chance: 0.0,
            shutdown_delay_duration: Duration::ZERO,
            delete_collection_workers: 1,
            max_connection_bytes_per_sec: 0,
            shutdown_send_retry_after: false,
            shutdown_watch_termination_grace_period: Duration::ZERO,
        }
    }
}

pub fn duration(text: &str) -> Result<Duration, String> {
    fluyt_cel::parse_duration(text)
        .and_then(|d| d.try_into().ok())
        .ok_or_else(|| format!("time: invalid duration \"{text}\""))
}

fn chance(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|chance| (0.0..=0.02).contains(chance))
        .ok_or_else(|| "--goaway-chance can not be less than 0 or greater than 0.02".to_owned())
}

impl Limits {
    /// How long a request may take; `None` when that is its client's business.
    ///
    /// # Errors
    /// 400 when the client's own wish makes no sense.
    pub fn timeout_of(&self, info: &RequestInfo) -> Result<Option<Duration>, Error> {
        if info.is_long_running() {
            return Ok(None);
        }
        let wanted = match info.query.get("timeout").filter(|text| !text.is_empty()) {
            None => return Ok(Some(self.request_timeout)),
            Some(text) => duration(text).map_err(|why| {
                Error::bad_request(format!(
                    "invalid timeout specified in the request URL - {why}"
                ))
            })?,
        };
        // Zero means the most there is.
        Ok(Some(if wanted.is_zero() {
            self.request_timeout
        } else {
            wanted.min(self.request_timeout)
        }))
    }

    /// How many requests a connection may carry at once.
    #[must_use]
    pub fn streams(&self) -> u32 {
        match self.http2_max_streams_per_connection {
            0 => 100,
            most => most,
        }
    }

    /// Whether this request is one after which its client shall connect anew.
    #[must_use]
    pub fn says_goodbye(&self) -> bool {
        self.goaway_chance > 0.0 && rand::random::<f64>() < self.goaway_chance
    }
}

/// What a request that took too long is answered with.
#[must_use]
pub fn timed_out() -> Error {
    Error::new(
        Reason::Timeout,
        "Timeout: request did not complete within the allotted timeout",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::Method;
    use fluyt_api::resources::Snapshot;

    fn timeout(path: &str, query: &str) -> Result<Option<Duration>, u16> {
        let info = RequestInfo::parse(&Snapshot::default(), &Method::GET, path, Some(query));
        Limits::default().timeout_of(&info).map_err(|e| e.code)
    }

    #[test]
    fn clients_may_want_less_time_but_not_more() {
        let minute = Some(Duration::from_secs(60));
        assert_eq!(timeout("/api/v1/pods", ""), Ok(minute));
        assert_eq!(timeout("/api/v1/pods", "timeout=2m"), Ok(minute));
        let second = Some(Duration::from_secs(1));
        assert_eq!(timeout("/api/v1/pods", "timeout=1s"), Ok(second));
        assert_eq!(timeout("/api/v1/pods", "timeout=x"), Err(400));
        assert_eq!(timeout("/api/v1/pods", "watch=1"), Ok(None));
        let log = "/api/v1/namespaces/n/pods/a/log";
        assert_eq!(timeout(log, ""), Ok(None));
        assert!(chance("0.03").is_err());
    }
}
