//! Flags about what this server does not have. They are taken where they ask for nothing.

use std::time::Duration;

use anyhow::{bail, ensure};

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
    /// Authorities of other servers: only none, as no request is passed on to another server.
    #[arg(long)]
    peer_ca_file: Option<String>,
    /// Address by which other servers reach this one: only none.
    #[arg(long)]
    peer_advertise_ip: Option<String>,
    /// Its port: only none.
    #[arg(long)]
    peer_advertise_port: Option<String>,
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
    /// When something is asked for, and what upstream objects to.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let peers = [
            ("peer-ca-file", &self.peer_ca_file),
            ("peer-advertise-ip", &self.peer_advertise_ip),
            ("peer-advertise-port", &self.peer_advertise_port),
        ];
        for (flag, value) in peers {
            if value.as_deref().is_some_and(|value| !value.is_empty()) {
                bail!(
                    "--{flag} requires UnknownVersionInteroperabilityProxy feature, which is not there: no request is passed on to another server"
                );
            }
        }
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
