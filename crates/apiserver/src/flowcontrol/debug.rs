//! `/debug/api_priority_and_fairness/*`: what levels, queues and requests there are at this moment.

use std::fmt::Write as _;
use std::time::Duration;

use fluyt_api::resources::api_version;

use super::levels::Digest;
use crate::cache::Caches;
use crate::go_duration;
use crate::request::{Query, RequestInfo};

const PREFIX: &str = "/debug/api_priority_and_fairness/";

/// The dump that a path asks for.
pub(super) fn answer(
    caches: &Caches,
    digest: &Digest,
    path: &str,
    query: &Query,
) -> Option<String> {
    let rows = match path.strip_prefix(PREFIX)? {
        "dump_priority_levels" => levels(digest),
        "dump_queues" => queues(digest),
        "dump_requests" => {
            let detailed = query
                .get("includeRequestDetails")
                .is_some_and(|v| !v.is_empty());
            requests(caches, digest, detailed)
        }
        _ => return None,
    };
    Some(table(&rows))
}

type Row = Vec<String>;

fn row<const N: usize>(columns: [&str; N]) -> Row {
    columns.map(str::to_owned).to_vec()
}

fn levels(digest: &Digest) -> Vec<Row> {
    let mut rows = vec![row([
        "PriorityLevelName",
        "ActiveQueues",
        "IsIdle",
        "IsQuiescing",
        "WaitingRequests",
        "ExecutingRequests",
        "DispatchedRequests",
        "RejectedRequests",
        "TimedoutRequests",
        "CancelledRequests",
    ])];
    for (name, level) in &digest.levels {
        let dump = level.set.dump();
        let active = dump.queues.iter().filter(|q| q.waiting > 0).count();
        rows.push(vec![
            name.clone(),
            active.to_string(),
            level.set.is_idle().to_string(),
            level.is_quiescing().to_string(),
            dump.waiting.to_string(),
            dump.executing.to_string(),
            dump.totals.dispatched.to_string(),
            dump.totals.rejected.to_string(),
            dump.totals.timed_out.to_string(),
            dump.totals.cancelled.to_string(),
        ]);
    }
    rows
}

fn queues(digest: &Digest) -> Vec<Row> {
    let mut rows = vec![row([
        "PriorityLevelName",
        "Index",
        "PendingRequests",
        "ExecutingRequests",
        "SeatsInUse",
        "NextDispatchR",
        "InitialSeatsSum",
        "MaxSeatsSum",
        "TotalWorkSum",
    ])];
    for (name, level) in &digest.levels {
        for (index, queue) in level.set.dump().queues.iter().enumerate() {
            rows.push(vec![
                name.clone(),
                index.to_string(),
                queue.waiting.to_string(),
                queue.executing.to_string(),
                queue.seats_in_use.to_string(),
                format!("{:.8}ss", queue.next_dispatch_r),
                queue.initial_seats.to_string(),
                queue.max_seats.to_string(),
                format!("{:.8}ss", queue.work),
            ]);
        }
    }
    rows
}

fn requests(caches: &Caches, digest: &Digest, detailed: bool) -> Vec<Row> {
    let mut head = row([
        "PriorityLevelName",
        "FlowSchemaName",
        "QueueIndex",
        "RequestIndexInQueue",
        "FlowDistingsher",
        "ArriveTime",
        "InitialSeats",
        "FinalSeats",
        "AdditionalLatency",
        "StartTime",
    ]);
    if detailed {
        head.extend(row([
            "UserName",
            "Verb",
            "APIPath",
            "Namespace",
            "Name",
            "APIVersion",
            "Resource",
            "SubResource",
        ]));
    }
    let mut rows = vec![head];
    let served = caches.served();
    let ago = |ago: Duration| {
        let then = jiff::Timestamp::now()
            .checked_sub(jiff::SignedDuration::try_from(ago).unwrap_or_default());
        then.map(|t| t.to_string()).unwrap_or_default()
    };
    for (name, level) in &digest.levels {
        for request in level.set.dump().requests {
            let details = &request.details;
            let started = request.started.map(ago);
            let mut columns = vec![
                name.clone(),
                request.flow_schema.clone(),
                request.queue.to_string(),
                request.index.to_string(),
                details.distinguisher.clone(),
                ago(request.arrived),
                request.width.initial.to_string(),
                request.width.last.to_string(),
                go_duration::show(request.width.lingering),
                started.unwrap_or_else(|| "0001-01-01T00:00:00Z".into()),
            ];
            if detailed {
                let (path, query) = details.path.split_once('?').unwrap_or((&details.path, ""));
                let info = RequestInfo::parse(&served, &::http::Method::GET, path, Some(query));
                let target = info.target.as_ref();
                let part =
                    |of: fn(&crate::request::Target) -> String| target.map(of).unwrap_or_default();
                columns.extend([
                    details.user.clone(),
                    details.verb.to_owned(),
                    path.to_owned(),
                    part(|t| t.namespace.clone()),
                    part(|t| t.name.clone()),
                    part(|t| api_version(&t.group, &t.version)),
                    part(|t| t.plural.clone()),
                    part(|t| t.subresource.clone()),
                ]);
            }
            rows.push(columns);
        }
    }
    rows
}

/// Columns with commas, aligned.
fn table(rows: &[Row]) -> String {
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        (cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
            + 2)
        .max(8)
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in rows {
        for (i, cell) in row.iter().enumerate() {
            // Writing to a string cannot fail.
            let _ = if i + 1 < row.len() {
                write!(text, "{:width$}", format!("{cell},"), width = widths[i])
            } else {
                writeln!(text, "{cell}")
            };
        }
    }
    text
}
