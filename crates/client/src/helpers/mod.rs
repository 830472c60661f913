//! Questions that several components ask of API objects (upstream's `component-helpers`).

pub mod labels;
pub mod pods;
pub mod resource;
pub mod scheduling;
