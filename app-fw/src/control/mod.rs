//! The control socket: who may ask the daemon what, and how long a client may take.
//!
//! Each connection is a task of its own with limits on bytes and time, and each request runs on a blocking thread, so that
//! a slow, silent or hostile client costs the others nothing. What a request means is the [`Handler`]'s business.

mod admission;
mod connection;
mod hub;
mod socket;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Gid;
use shared::control::{Answer, Request};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use admission::Admission;
#[cfg(test)]
pub(crate) use connection::read_call;
use connection::{Connection, Peer};
pub use hub::{Hub, Subscription};
use socket::Name;
pub use socket::{ControlError, GROUP};

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Process id; for people only: the process may be gone and its number somebody else's.
    pub pid: Option<u32>,
}

/// Does what clients ask for.
pub trait Handler: Send + Sync + 'static {
    /// Answers one request, but not to subscribe. The caller's right to make it has been checked. Runs on a thread that may
    /// block; several requests may run at once.
    fn handle(&self, caller: Caller, request: Request) -> Answer;

    /// Begins to tell of changes, of packets, or both.
    fn subscribe(&self, changes: bool, packets: bool) -> Subscription;
}

/// What clients may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// From the first byte of a frame to its last.
    frame: Duration,
    /// Between frames.
    idle: Duration,
    /// For a client to take an answer.
    answer: Duration,
    /// For connections to end once the server stops.
    stop: Duration,
    /// Connections at once.
    connections: usize,
    /// Of these not root's, so that others cannot lock root out.
    unprivileged: usize,
    /// Of these one user's, so that one cannot lock the others out.
    per_user: usize,
    /// Long requests of users other than root at once, one for each user: what JSON takes in memory is many times its length.
    long: usize,
}

const LIMITS: Limits = Limits {
    frame: Duration::from_secs(10),
    idle: Duration::from_secs(300),
    answer: Duration::from_secs(30),
    stop: Duration::from_secs(5),
    connections: 64,
    unprivileged: 48,
    per_user: 8,
    long: 4,
};

/// How long to wait after the system refused a connection for want of descriptors or memory: nothing tells when there are
/// some again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A control socket that clients can connect to. Its file goes when the server does.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
    name: Name,
    limits: Limits,
}

impl Server {
    /// Binds the socket at `path`: mode 0660, owned by root and by `group` if there is one. It appears complete, with its
    /// final owner and mode; clients that connect before [`Server::serve`] runs are kept waiting, not refused. A missing
    /// directory is made with mode 0755. Nobody but root should be able to write to the directory.
    ///
    /// # Errors
    /// Another daemon listens there, something that is no socket is there, or the system refuses.
    pub fn bind(path: &Path, group: Option<Gid>) -> Result<Server, ControlError> {
        let (listener, name) = socket::bind(path, group)?;
        Ok(Server { listener, name, limits: LIMITS })
    }

    /// Serves clients until `shutdown` is ready, then removes the socket and lets requests that are being answered finish.
    ///
    /// # Errors
    /// The socket cannot be handed to the runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime with I/O and time enabled.
    pub async fn serve(
        self,
        handler: Arc<dyn Handler>,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ControlError> {
        let Server { listener, name, limits } = self;
        let listener = UnixListener::from_std(listener).map_err(|source| name.error(source))?;
        let admission = Admission::new(limits);
        let (stop, stopping) = watch::channel(false);
        let mut connections = JoinSet::new();
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => start(stream, &admission, &handler, &stopping, limits, &mut connections),
                    Err(error) => {
                        tracing::error!(%error, "cannot accept a control connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(ended) = connections.join_next() => report(ended),
            }
        }
        drop(name);
        drop(listener);
        // Fails only if no connection is left to hear it.
        let _ = stop.send(true);
        let ended = timeout(limits.stop, async {
            while let Some(ended) = connections.join_next().await {
                report(ended);
            }
        });
        if ended.await.is_err() {
            tracing::warn!(connections = connections.len(), "control connections did not end in time");
        }
        Ok(())
    }
}

/// Gives a new connection its task, or tells it that there are too many.
fn start(
    stream: UnixStream,
    admission: &Admission,
    handler: &Arc<dyn Handler>,
    stopping: &watch::Receiver<bool>,
    limits: Limits,
    connections: &mut JoinSet<()>,
) {
    let peer = match stream.peer_cred() {
        Ok(credentials) => Peer { uid: credentials.uid(), pid: credentials.pid() },
        Err(error) => {
            tracing::error!(%error, "a control connection without credentials is closed");
            return;
        }
    };
    match admission.admit(peer) {
        Ok(seat) => {
            let connection = Connection {
                stream,
                peer,
                handler: handler.clone(),
                admission: admission.clone(),
                stopping: stopping.clone(),
                limits,
            };
            connections.spawn(async move {
                connection.run().await;
                drop(seat);
            });
        }
        Err(refusal) => {
            tracing::warn!(uid = peer.uid, pid = peer.pid, "control connection refused: {refusal}");
            connection::refuse(&stream, refusal);
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a control connection failed");
    }
}
