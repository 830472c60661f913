//! Objects sent to either API server.

use async_trait::async_trait;
use serde_json::Value;

pub use crate::common::sides::{Ours, Peer};
use crate::common::sides::{Request, Side};

/// What a server has answered.
#[derive(Debug)]
pub struct Response {
    /// 0 when there was no answer.
    pub code: u16,
    pub body: Value,
    pub warnings: Vec<String>,
}

#[async_trait]
pub trait Server: Side {
    async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Response {
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            body: body.map(Value::to_string).unwrap_or_default(),
            ..Request::default()
        };
        let answer = self.ask(request).await;
        Response {
            code: answer.code,
            body: serde_json::from_str(&answer.body).unwrap_or_default(),
            warnings: answer.warnings.iter().map(|w| warning(w)).collect(),
        }
    }
}

impl<S: Side> Server for S {}

/// The text of `Warning: 299 - "text"`.
fn warning(header: &str) -> String {
    let quoted = header.split_once('"').map_or("", |(_, rest)| rest);
    quoted
        .trim_end_matches('"')
        .replace("\\\"", "\"")
        .replace("\\\\", "\\")
}
