//! Custom resources at work: accepting and establishing their definitions, converting between their versions, cleaning up
//! after them.

mod controllers;
mod conversion;

pub use controllers::run;
pub use conversion::Converter;
