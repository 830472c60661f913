//! Flags about what this server does not have. They are taken where they ask for nothing.

use std::time::Duration;

use anyhow::ensure;

use crate::{go_bool, limits};

#[derive(clap::Args, Debug)]
pub struct AbsentArgs {
    /// Profiles of Go programs, which this is not: only false, as nothing is served under /debug/pprof.
    #[arg(long, value_parser = without_profiles, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    profiling: Option<bool>,
    /// The same of profiles of locks: only false.
    #[arg(long, value_parser = without_profiles, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    contention_profiling: Option<bool>,
    /// A socket for the same: only none.
    #[arg(long, value_parser = without_socket)]
    debug_socket_path: Option<String>,
    /// Files of /var/log under /logs, which upstream is to drop: only false. Deprecated.
    #[arg(long, value_parser = without_logs, num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    enable_logs_handler: Option<bool>,
    /// The port of kubelets that need no credentials, which nothing here or of upstream's uses. Deprecated.
    #[arg(long)]
    kubelet_read_only_port: Option<u16>,
    /// Of the feature CoordinatedLeaderElection, which cannot be turned on.
    #[arg(long, default_value = "15s", value_parser = limits::duration)]
    coordinated_leadership_lease_duration: Duration,
    /// Of the same feature.
    #[arg(long, default_value = "10s", value_parser = limits::duration)]
    coordinated_leadership_renew_deadline: Duration,
    /// Of the same feature.
    #[arg(long, default_value = "2s", value_parser = limits::duration)]
    coordinated_leadership_retry_period: Duration,
}

fn without_profiles(text: &str) -> Result<bool, String> {
    off(text, "there are no profiles to serve")
}

fn without_logs(text: &str) -> Result<bool, String> {
    off(text, "there are no log files to serve")
}

fn off(text: &str, why_not: &'static str) -> Result<bool, String> {
    match go_bool::parse(text)? {
        false => Ok(false),
        true => Err(why_not.to_owned()),
    }
}

fn without_socket(path: &str) -> Result<String, &'static str> {
    match path {
        "" => Ok(String::new()),
        _ => Err("there are no profiles to serve"),
    }
}

impl AbsentArgs {
    /// # Errors
    /// What upstream objects to.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.coordinated_leadership_lease_duration > self.coordinated_leadership_renew_deadline,
            "--coordinated-leadership-lease-duration must be greater than --coordinated-leadership-renew-deadline"
        );
        ensure!(
            self.coordinated_leadership_renew_deadline > self.coordinated_leadership_retry_period,
            "--coordinated-leadership-renew-deadline must be greater than --coordinated-leadership-retry-period"
        );
        Ok(())
    }
}
