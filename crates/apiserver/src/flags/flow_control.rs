//! Flags about how many requests are served at a time.

use anyhow::bail;
use clap::ArgAction;

use crate::flowcontrol::Settings;
use crate::go_bool;

#[derive(clap::Args, Debug)]
pub struct FlowControlArgs {
    /// Sorts requests by FlowSchemas into priority levels with fair queues; else only their number is limited.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true)]
    enable_priority_and_fairness: bool,
    /// Reading requests at a time; with priority and fairness, the sum of both numbers is divided.
    #[arg(long, default_value_t = 400)]
    max_requests_inflight: u64,
    /// Mutating requests at a time.
    #[arg(long, default_value_t = 200)]
    max_mutating_requests_inflight: u64,
}

impl FlowControlArgs {
    /// # Errors
    /// When nothing at all could be served.
    pub(super) fn settings(&self) -> anyhow::Result<Settings> {
        let total = self.max_requests_inflight + self.max_mutating_requests_inflight;
        if self.enable_priority_and_fairness && total == 0 {
            bail!(
                "--max-requests-inflight and --max-mutating-requests-inflight cannot both be zero when --enable-priority-and-fairness is true"
            );
        }
        Ok(Settings {
            enabled: self.enable_priority_and_fairness,
            max_requests: self.max_requests_inflight,
            max_mutating: self.max_mutating_requests_inflight,
        })
    }
}
