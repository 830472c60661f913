//! Listens on the host and passes connections on to nodes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::Connect;

/// How long one node is given to take a connection.
const PATIENCE: Duration = Duration::from_secs(3);

/// The listeners of all load balancers.
pub struct Forwarder {
    connect: Connect,
    listeners: HashMap<SocketAddr, Listener>,
}

struct Listener {
    backends: watch::Sender<Vec<SocketAddr>>,
    /// Stops listening when dropped; connections that were taken go on.
    _task: AbortOnDropHandle<()>,
}

impl Forwarder {
    pub fn new(connect: Connect) -> Self {
        Self {
            connect,
            listeners: HashMap::new(),
        }
    }

    /// Listens on just these addresses, each for its backends; the addresses that cannot be had, with the reason.
    pub async fn set(
        &mut self,
        wanted: &HashMap<SocketAddr, Vec<SocketAddr>>,
    ) -> HashMap<SocketAddr, String> {
        self.listeners
            .retain(|address, _| wanted.contains_key(address));
        let mut failed = HashMap::new();
        for (address, backends) in wanted {
            if let Some(listener) = self.listeners.get(address) {
                listener.backends.send_if_modified(|present| {
                    let changed = present != backends;
                    if changed {
                        present.clone_from(backends);
                    }
                    changed
                });
                continue;
            }
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    let (sender, receiver) = watch::channel(backends.clone());
                    let task = tokio::spawn(serve(listener, receiver, self.connect.clone()));
                    let listener = Listener {
                        backends: sender,
                        _task: AbortOnDropHandle::new(task),
                    };
                    self.listeners.insert(*address, listener);
                }
                Err(error) => {
                    failed.insert(*address, format!("cannot listen on {address}: {error}"));
                }
            }
        }
        failed
    }
}

async fn serve(
    listener: TcpListener,
    backends: watch::Receiver<Vec<SocketAddr>>,
    connect: Connect,
) {
    let turn = AtomicUsize::new(0);
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of descriptors, most likely: let some close.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let backends = backends.borrow().clone();
        let (first, connect) = (turn.fetch_add(1, Ordering::Relaxed), connect.clone());
        tokio::spawn(async move { forward(client, &backends, first, &connect).await });
    }
}

/// Joins a client with the first backend, from its turn on, that takes the connection.
async fn forward(mut client: TcpStream, backends: &[SocketAddr], first: usize, connect: &Connect) {
    for i in 0..backends.len() {
        let backend = backends[(first + i) % backends.len()];
        match tokio::time::timeout(PATIENCE, connect(backend)).await {
            Ok(Ok(mut server)) => {
                let _ = (client.set_nodelay(true), server.set_nodelay(true));
                // Either side may hang up whenever it likes.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                return;
            }
            Ok(Err(error)) => tracing::debug!(%backend, %error, "a node refused a connection"),
            Err(_) => tracing::debug!(%backend, "a node did not answer"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn backend(word: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(word.as_bytes()).await;
            }
        });
        address
    }

    async fn read(address: SocketAddr) -> String {
        let mut text = String::new();
        TcpStream::connect(address)
            .await
            .unwrap()
            .read_to_string(&mut text)
            .await
            .unwrap();
        text
    }

    #[tokio::test]
    async fn connections_go_to_backends_that_answer() {
        let (one, two) = (backend("1").await, backend("2").await);
        let dead: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let address = {
            let probe = TcpListener::bind("127.20.255.1:0").await.unwrap();
            probe.local_addr().unwrap()
        };
        let mut forwarder = Forwarder::new(Arc::new(|a| Box::pin(TcpStream::connect(a))));
        let failed = forwarder
            .set(&[(address, vec![dead, one, two])].into())
            .await;
        assert!(failed.is_empty());
        let mut words = Vec::new();
        for _ in 0..6 {
            words.push(read(address).await);
        }
        assert!(
            words.contains(&"1".to_owned()) && words.contains(&"2".to_owned()),
            "{words:?}"
        );
        forwarder.set(&[(address, vec![two])].into()).await;
        assert_eq!(read(address).await, "2");
        let taken = forwarder
            .set(&[(address, vec![two]), (one, vec![two])].into())
            .await;
        assert!(taken[&one].contains("cannot listen"));
        forwarder.set(&HashMap::new()).await;
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }
}
