//! The socket that connections come in by.

use crate::go_bool;
use std::net::SocketAddr;

use clap::ArgAction;
use tokio::net::{TcpListener, TcpSocket};

/// Waiting connections, as many as Go's listeners have where the kernel sets no other bound.
const BACKLOG: u32 = 4096;

/// Who else may listen there.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct Sharing {
    /// Let other servers that do the same listen on the address and port as well (SO_REUSEPORT).
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    permit_port_sharing: bool,
    /// Do not wait for connections of the past to be forgotten (SO_REUSEADDR). Listeners on Linux never do, nor do upstream's.
    #[arg(long, value_parser = go_bool::parse, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true", require_equals = true)]
    permit_address_sharing: bool,
}

impl Sharing {
    /// # Errors
    /// What the kernel says.
    pub fn bind(self, address: SocketAddr) -> std::io::Result<TcpListener> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()
        } else {
            TcpSocket::new_v6()
        }?;
        socket.set_reuseaddr(true)?;
        socket.set_reuseport(self.permit_port_sharing)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    }
}
