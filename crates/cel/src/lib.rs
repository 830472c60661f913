//! The Common Expression Language as Kubernetes uses it: typed against schemas, with upstream's libraries and upstream's
//! cost model (an estimate when an expression is written, a budget when it runs). Pure: no I/O.
//!
//! Parsing and macro expansion are the `cel` crate's. Its evaluator has no types, no static cost and no hook at every
//! evaluation step, which upstream's budget needs, so checking, estimating and evaluating are done here over its tree.

mod ast;
mod authz;
mod check;
mod cost;
mod decls;
mod eval;
mod functions;
mod library;
mod parse;
mod program;
mod schema;
mod types;
mod value;

pub use authz::{Authorize, Authorizer, Query};
pub use cost::{Estimate, maximum_cardinality};
pub use eval::{Activation, EvalError};
pub use library::parse_duration;
pub use program::{CompileError, Environment, Program};
pub use schema::{RESERVED, escape, of_schema, of_structural};
pub use types::{Field, ObjectType, Type};
pub use value::Value;

/// The cost that one evaluation may have.
pub const PER_CALL_LIMIT: u64 = 1_000_000;

/// The cost that all rules of one object, or all validations of one policy binding, may have together.
pub const RUNTIME_BUDGET: u64 = 10_000_000;

/// The cost that all match conditions of one webhook or policy may have together.
pub const MATCH_CONDITIONS_BUDGET: u64 = 2_500_000;

/// The estimated cost that one rule of a custom resource may have.
pub const STATIC_COST_LIMIT: u64 = 10_000_000;

/// The estimated cost that all rules of one definition's version may have together.
pub const STATIC_TOTAL_LIMIT: u64 = 100_000_000;

/// A longer message of a `messageExpression` is not used.
pub const MAX_MESSAGE: usize = 5 * 1024;
