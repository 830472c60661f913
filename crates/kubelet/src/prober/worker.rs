//! One probe of one container instance.

use std::sync::Weak;
use std::time::Duration;

use fluyt_client::{EventType, Recorder};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ObjectReference, Probe};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::{ProbeKind, ProbeManager, grpc, http};
use crate::cri::Cri;
use crate::pod::resolve_port;

pub struct Worker {
    pub manager: Weak<ProbeManager>,
    pub cri: Cri,
    pub recorder: Recorder,
    pub reference: ObjectReference,
    pub kind: ProbeKind,
    pub probe: Probe,
    pub container: Container,
    pub container_id: String,
    pub ip: Option<String>,
    pub started_at: i64,
    pub startup: watch::Receiver<Option<bool>>,
}

/// Counts like results until a threshold turns the verdict.
#[derive(Debug)]
pub struct Tally {
    success: u32,
    failure: u32,
    last: Option<bool>,
    run: u32,
}

impl Tally {
    pub fn new(probe: &Probe) -> Self {
        let threshold = |value: Option<i32>, default| {
            value
                .and_then(|v| u32::try_from(v).ok())
                .filter(|v| *v > 0)
                .unwrap_or(default)
        };
        Tally {
            success: threshold(probe.success_threshold, 1),
            failure: threshold(probe.failure_threshold, 3),
            last: None,
            run: 0,
        }
    }

    /// Notes a result; `Some` when enough of its kind came in a row.
    pub fn note(&mut self, healthy: bool) -> Option<bool> {
        if self.last == Some(healthy) {
            self.run += 1;
        } else {
            self.last = Some(healthy);
            self.run = 1;
        }
        let needed = if healthy { self.success } else { self.failure };
        (self.run >= needed).then_some(healthy)
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    Duration::from_secs(
        value
            .and_then(|v| u64::try_from(v).ok())
            .filter(|v| *v > 0)
            .unwrap_or(default),
    )
}

impl Worker {
    pub async fn run(mut self) {
        let initial = i64::from(self.probe.initial_delay_seconds.unwrap_or(0)) * 1_000_000_000;
        let now = i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        let wait = self.started_at.saturating_add(initial).saturating_sub(now);
        if let Ok(wait) = u64::try_from(wait) {
            tokio::time::sleep(Duration::from_nanos(wait)).await;
        }
        if self.kind != ProbeKind::Startup
            && self
                .startup
                .wait_for(|started| *started == Some(true))
                .await
                .is_err()
        {
            return;
        }
        let mut tally = Tally::new(&self.probe);
        let mut ticks =
            tokio::time::interval_at(Instant::now(), seconds(self.probe.period_seconds, 10));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let outcome = self.once().await;
            if let Err(why) = &outcome {
                let message = format!("{} probe failed: {why}", self.kind.as_str());
                self.recorder
                    .event(&self.reference, EventType::Warning, "Unhealthy", message);
            }
            let Some(verdict) = tally.note(outcome.is_ok()) else {
                continue;
            };
            let Some(manager) = self.manager.upgrade() else {
                return;
            };
            manager.set(&self.container_id, self.kind, verdict);
            // Started once is started; and what has failed for good gets killed.
            let done = match self.kind {
                ProbeKind::Startup => true,
                ProbeKind::Liveness => !verdict,
                ProbeKind::Readiness => false,
            };
            if done {
                return;
            }
        }
    }

    async fn once(&self) -> Result<(), String> {
        let timeout = seconds(self.probe.timeout_seconds, 1);
        let host = |own: &Option<String>| {
            own.clone()
                .filter(|host| !host.is_empty())
                .or_else(|| self.ip.clone())
                .ok_or_else(|| "the pod has no address".to_string())
        };
        let port = |port| {
            resolve_port(port, &self.container)
                .ok_or_else(|| "the probe's port is unknown".to_string())
        };
        if let Some(exec) = &self.probe.exec {
            let command = exec.command.clone().unwrap_or_default();
            let answer = self
                .cri
                .exec_sync(&self.container_id, command, timeout)
                .await;
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) if error.code() == tonic::Code::DeadlineExceeded => {
                    return Err(format!("command timed out after {timeout:?}"));
                }
                Err(error) => return Err(error.message().to_string()),
            };
            if answer.exit_code == 0 {
                return Ok(());
            }
            let mut output = String::from_utf8_lossy(&answer.stdout).into_owned();
            output.push_str(&String::from_utf8_lossy(&answer.stderr));
            output.truncate(output.floor_char_boundary(10 * 1024));
            Err(output)
        } else if let Some(get) = &self.probe.http_get {
            let request = http::Request {
                https: get.scheme.as_deref() == Some("HTTPS"),
                host: host(&get.host)?,
                port: port(&get.port)?,
                path: get.path.clone().unwrap_or_else(|| "/".into()),
                headers: http::headers(get),
                user_agent: "kube-probe/1.36",
            };
            let answer = http::get(&request, timeout).await?;
            if (200..400).contains(&answer.code) {
                Ok(())
            } else {
                Err(format!(
                    "HTTP probe failed with statuscode: {}",
                    answer.code
                ))
            }
        } else if let Some(socket) = &self.probe.tcp_socket {
            let address = http::address(&host(&socket.host)?, port(&socket.port)?);
            http::connect(&address, timeout).await.map(drop)
        } else if let Some(check) = &self.probe.grpc {
            let port = u16::try_from(check.port).map_err(|_| "the probe's port is no port")?;
            let service = check.service.clone().unwrap_or_default();
            grpc::check(&host(&None)?, port, service, timeout).await
        } else {
            Err("missing probe handler".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe {
            success_threshold: Some(2),
            failure_threshold: Some(3),
            ..Probe::default()
        };
        let mut tally = Tally::new(&probe);
        let results = [
            true, true, false, false, true, false, false, false, true, true,
        ];
        let verdicts: Vec<_> = results.iter().map(|r| tally.note(*r)).collect();
        assert_eq!(
            verdicts,
            [
                None,
                Some(true),
                None,
                None,
                None,
                None,
                None,
                Some(false),
                None,
                Some(true)
            ]
        );
    }
}
