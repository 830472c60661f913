//! Probes, lifecycle hooks and what both do.

use super::container::Context;
use crate::validation::{At, Errors, http_header_name, port_number, port_number_or_name};

const LINUX_SIGNALS: &[&str] = &[
    "SIGABRT",
    "SIGALRM",
    "SIGBUS",
    "SIGCHLD",
    "SIGCLD",
    "SIGCONT",
    "SIGFPE",
    "SIGHUP",
    "SIGILL",
    "SIGINT",
    "SIGIO",
    "SIGIOT",
    "SIGKILL",
    "SIGPIPE",
    "SIGPOLL",
    "SIGPROF",
    "SIGPWR",
    "SIGQUIT",
    "SIGRTMAX",
    "SIGRTMAX-1",
    "SIGRTMAX-10",
    "SIGRTMAX-11",
    "SIGRTMAX-12",
    "SIGRTMAX-13",
    "SIGRTMAX-14",
    "SIGRTMAX-2",
    "SIGRTMAX-3",
    "SIGRTMAX-4",
    "SIGRTMAX-5",
    "SIGRTMAX-6",
    "SIGRTMAX-7",
    "SIGRTMAX-8",
    "SIGRTMAX-9",
    "SIGRTMIN",
    "SIGRTMIN+1",
    "SIGRTMIN+10",
    "SIGRTMIN+11",
    "SIGRTMIN+12",
    "SIGRTMIN+13",
    "SIGRTMIN+14",
    "SIGRTMIN+15",
    "SIGRTMIN+2",
    "SIGRTMIN+3",
    "SIGRTMIN+4",
    "SIGRTMIN+5",
    "SIGRTMIN+6",
    "SIGRTMIN+7",
    "SIGRTMIN+8",
    "SIGRTMIN+9",
    "SIGSEGV",
    "SIGSTKFLT",
    "SIGSTOP",
    "SIGSYS",
    "SIGTERM",
    "SIGTRAP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGUSR1",
    "SIGUSR2",
    "SIGVTALRM",
    "SIGWINCH",
    "SIGXCPU",
    "SIGXFSZ",
];
const WINDOWS_SIGNALS: &[&str] = &["SIGKILL", "SIGTERM"];
const PROBE_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "grpc"];
const LIFECYCLE_HANDLERS: &[&str] = &["exec", "httpGet", "tcpSocket", "sleep"];

/// Lifecycle and probes of a container that stays.
pub(super) fn validate_all(container: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let lifecycle = container.field("lifecycle");
    for hook in ["postStart", "preStop"] {
        let at = lifecycle.field(hook);
        if at.is_set() {
            validate_handler(&at, LIFECYCLE_HANDLERS, context, errors);
        }
    }
    let signal = lifecycle.field("stopSignal");
    if signal.is_set() {
        match context.os {
            None => errors.forbidden(
                signal,
                "may not be set for containers with empty `spec.os.name`",
            ),
            Some("windows") => errors.member(&signal, WINDOWS_SIGNALS),
            Some("linux") => errors.member(&signal, LINUX_SIGNALS),
            Some(_) => {}
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = container.field(name);
        if !probe.is_set() {
            continue;
        }
        validate_probe(&probe, context, errors);
        let threshold = probe.field("successThreshold");
        let grace = probe.field("terminationGracePeriodSeconds");
        if name != "readinessProbe" {
            if threshold.int() != Some(1) {
                errors.bad(&threshold, "must be 1");
            }
        } else if grace.is_set() {
            errors.bad(&grace, "must not be set for readinessProbes");
        }
    }
}

fn validate_probe(probe: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    validate_handler(probe, PROBE_HANDLERS, context, errors);
    errors.non_negative_fields(
        probe,
        &[
            "initialDelaySeconds",
            "timeoutSeconds",
            "periodSeconds",
            "successThreshold",
            "failureThreshold",
        ],
    );
    let grace = probe.field("terminationGracePeriodSeconds");
    if grace.int().is_some_and(|n| n <= 0) {
        errors.bad(&grace, "must be greater than 0");
    }
}

fn validate_handler(
    handler: &At<'_, '_>,
    kinds: &[&str],
    context: &Context<'_>,
    errors: &mut Errors,
) {
    let mut count = 0;
    for kind in kinds {
        let at = handler.field(kind);
        if !at.is_set() {
            continue;
        }
        count += 1;
        if count > 1 {
            errors.forbidden(at, "may not specify more than 1 handler type");
            continue;
        }
        match *kind {
            "exec" => {
                let command = at.field("command");
                if command.is_empty() {
                    errors.required(command, "");
                }
            }
            "httpGet" => validate_http_get(&at, errors),
            "grpc" => port_number(errors, &at.field("port")),
            "sleep" => validate_sleep(&at, context, errors),
            _ => port_number_or_name(errors, &at.field("port")),
        }
    }
    if count == 0 {
        errors.required(handler, "must specify a handler type");
    }
}

fn validate_http_get(at: &At<'_, '_>, errors: &mut Errors) {
    errors.required_text(&at.field("path"));
    port_number_or_name(errors, &at.field("port"));
    errors.member(&at.field("scheme"), &["HTTP", "HTTPS"]);
    let headers = at.field("httpHeaders");
    for header in headers.list() {
        let name = header["name"].as_str().unwrap_or_default();
        for problem in http_header_name(name) {
            errors.invalid_text(headers, name, &problem);
        }
    }
}

fn validate_sleep(at: &At<'_, '_>, context: &Context<'_>, errors: &mut Errors) {
    let seconds = at.get("seconds").as_i64().unwrap_or_default();
    if let Some(grace) = context.grace_period
        && !(0..=grace).contains(&seconds)
    {
        let detail =
            format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        errors.invalid(at, &seconds.into(), &detail);
    }
}
