//! One program, since each has the whole store in it. A file is about what its name says.

#![allow(clippy::unwrap_used)]

mod client;
mod common;
mod crash;
mod differential;
mod embedded;
mod etcdctl;
mod external;
mod linearizability;
mod snapshot;
mod store;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the server of other tests"]
async fn server_process() {
    common::process::serve().await;
}
