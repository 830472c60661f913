//! Connections of servers that carry many requests at once.
//!
//! [`serve`] is a server of HTTP/2 in which the task of a connection runs what it serves; [`sniff`] tells such connections
//! from others; [`in_turns`] has a connection send together what is written together. [`spdy`] and [`websocket`] carry the
//! streams of exec, attach and port-forward.

mod date;
mod http2;
mod incoming;
mod sniff;
pub mod spdy;
mod turns;
pub mod websocket;

pub use http2::{Error, Settings, serve};
pub use incoming::Incoming;
pub use sniff::{Rewound, sniff};
pub use turns::{InTurns, Turns, in_turns};
