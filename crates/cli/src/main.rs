//! The `fluyt` binary.
fn main() {}
