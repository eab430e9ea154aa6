//! A ttrpc connection that is made when it is first needed and again after it broke.

use std::future::Future;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;

use super::end::VmEnd;
use super::error::{Peer, VmError};

/// How long the end of the machine may lag behind the end of its connections.
const END_LAG: Duration = Duration::from_millis(500);

/// Learns how the machine ended. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Ended(watch::Receiver<Option<VmEnd>>);

impl Ended {
    pub(super) fn new(receiver: watch::Receiver<Option<VmEnd>>) -> Self {
        Self(receiver)
    }

    /// How the machine ended, if it has.
    pub(super) fn now(&self) -> Option<VmEnd> {
        self.0.borrow().clone()
    }

    /// Waits for the machine's end.
    pub(super) async fn wait(&self) -> VmEnd {
        let mut receiver = self.0.clone();
        loop {
            if let Some(end) = receiver.borrow_and_update().clone() {
                return end;
            }
            if receiver.changed().await.is_err() {
                // The watcher went away with the daemon's runtime.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// A peer's service.
#[derive(Debug)]
pub(super) struct Link {
    peer: Peer,
    client: Mutex<Option<Connection>>,
    ended: Ended,
}

struct Connection(Client);

impl std::fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Connection")
    }
}

impl Link {
    pub(super) fn new(peer: Peer, ended: Ended) -> Self {
        Self {
            peer,
            client: Mutex::new(None),
            ended,
        }
    }

    /// The connection that is there.
    pub(super) async fn cached(&self) -> Option<Client> {
        self.client
            .lock()
            .await
            .as_ref()
            .map(|connection| connection.0.clone())
    }

    /// Uses `stream` from now on.
    pub(super) async fn adopt(&self, client: Client) {
        *self.client.lock().await = Some(Connection(client));
    }

    /// A client on a connected socket.
    pub(super) fn client(stream: UnixStream) -> Client {
        Client::new(Socket::new(stream))
    }

    /// Bounds a call by `limit` (none: for as long as the machine lives) and by the machine's end,
    /// and forgets the connection when it broke.
    pub(super) async fn call<T>(
        &self,
        method: &'static str,
        limit: Option<Duration>,
        request: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, VmError> {
        let peer = self.peer;
        let bounded = async {
            let Some(limit) = limit else {
                return request
                    .await
                    .map_err(|error| VmError::rpc(peer, method, &error));
            };
            match tokio::time::timeout(limit, request).await {
                Ok(answer) => answer.map_err(|error| VmError::rpc(peer, method, &error)),
                Err(_elapsed) => Err(VmError::Timeout {
                    peer,
                    method,
                    limit,
                }),
            }
        };
        let result = tokio::select! {
            biased;
            result = bounded => result,
            end = self.ended.wait() => Err(VmError::Ended(end)),
        };
        if !matches!(result, Err(VmError::Broken { .. })) {
            return result;
        }
        *self.client.lock().await = None;
        // The connection breaks a moment before the process is seen to be gone.
        match tokio::time::timeout(END_LAG, self.ended.wait()).await {
            Ok(end) => Err(VmError::Ended(end)),
            Err(_elapsed) => result,
        }
    }
}
