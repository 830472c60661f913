//! Custom resources at work: accepting and establishing their definitions, converting between their versions, cleaning up
//! after them.

mod controllers;
mod conversion;
mod definition;
mod rules;

pub use controllers::run;
pub use conversion::Converter;
pub use definition::validate as validate_definition;
pub use rules::compile as compile_rules;
