//! The sample application of `examples/guestbook`: a guest book of several replicas ([`web`]) with a store behind them
//! ([`store`]). It is part of the binary so that a new cluster has something to run without any registry.

mod http1;
pub mod store;
pub mod web;
