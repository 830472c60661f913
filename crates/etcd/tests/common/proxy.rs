//! A connection between a client and a server that can be cut and made silent.

use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Up,
    /// Connections are closed and new ones refused.
    Cut,
    /// Connections stay, and nothing passes.
    Silent,
}

pub struct Proxy {
    pub address: String,
    state: Arc<watch::Sender<State>>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(watch::Sender::new(State::Up));
        let (states, target) = (state.clone(), target.to_owned());
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(connection(stream, target.clone(), states.subscribe()));
            }
        });
        Self {
            address,
            state,
            task,
        }
    }

    pub fn cut(&self) {
        self.state.send_replace(State::Cut);
    }

    pub fn silence(&self) {
        self.state.send_replace(State::Silent);
    }

    pub fn heal(&self) {
        self.state.send_replace(State::Up);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(mut client: TcpStream, target: String, mut state: watch::Receiver<State>) {
    if *state.borrow_and_update() == State::Cut {
        return;
    }
    let mut server = TcpStream::connect(target).await.unwrap();
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Cut => return,
            // What passed while it was up is not taken back; the connection itself is never used again once silent.
            State::Silent => {
                while *state.borrow_and_update() == State::Silent {
                    if state.changed().await.is_err() {
                        return;
                    }
                }
                return;
            }
            State::Up => {}
        }
        tokio::select! {
            _ = copy_bidirectional(&mut client, &mut server) => return,
            changed = state.changed() => if changed.is_err() { return },
        }
    }
}
