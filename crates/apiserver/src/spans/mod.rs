//! Request tracing: what a request spends its time on, as spans that a collector gets (`--tracing-config-file`). Names,
//! attributes and the tree they form are upstream's: `authentication`, in it the request itself, in that one filter
//! within the other, the verb and its steps. Without the flag a request costs a look for its `traceparent`, which is
//! passed on to whom the request is passed on.

mod config;
mod context;
mod describe;
mod export;
mod otlp;
mod outgoing;
mod request;
mod sampler;
mod span;
mod tracer;

pub use config::TracingConfiguration;
pub(crate) use describe::handling;
pub(crate) use otlp::KeyValue;
pub(crate) use outgoing::call;
pub(crate) use request::{Arrival, Held};
pub(crate) use span::{Span, current, filter, start, within};
pub(crate) use tracer::Tracer;
