//! The control side: listening, admitting connections, adding and removing exports, ending.

use super::{
    Limits, NbdExport,
    handshake::Handshake,
    input::Input,
    queue,
    registry::{Registry, Seat, Which},
    socket,
};
use parallax_block::{Error, ErrorKind, Result, Runtime};
use parallax_device::{Listener, ReactorHandle, Stream};
use std::{
    future::{Future, poll_fn},
    path::{Path, PathBuf},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

/// Bytes of a request, at most, whatever the limits say: what clients are used to.
const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Bytes of replies that may wait in a socket.
const SEND_BUFFER: usize = 2 << 20;
/// How long a client may take to receive its last replies before it is cut off.
const GRACE: Duration = Duration::from_secs(5);
/// Pause after a failed accept, so that a shortage of descriptors does not become a busy loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Whose turn it is to take a connection. Servers share it: most have one client each, and those must not all end up on
/// the first thread.
static TURN: AtomicUsize = AtomicUsize::new(0);

/// Starts servers.
pub struct NbdServer;

impl NbdServer {
    /// Listens on `socket`; connections are spread over the reactors.
    pub fn start(
        reactors: &[ReactorHandle],
        socket: &Path,
        exports: Vec<NbdExport>,
        limits: Limits,
    ) -> Result<NbdServerHandle> {
        let Some(first) = reactors.first() else {
            return Err(Error::invalid("an NBD server needs at least one I/O thread"));
        };
        let limits = Limits { request_bytes_max: limits.request_bytes_max.min(REQUEST_BYTES_MAX), ..limits };
        let registry = Arc::new(Registry::default());
        for export in exports {
            registry.add(export)?;
        }
        let server = Arc::new(Server {
            listener: Listener::from(socket::listen(socket)?),
            socket: socket.to_owned(),
            reactors: reactors.to_vec(),
            registry,
            limits,
        });
        let accepting = Arc::clone(&server);
        first.spawn(async move { accepting.accept().await });
        Ok(NbdServerHandle(server))
    }
}

struct Server {
    listener: Listener,
    socket: PathBuf,
    reactors: Vec<ReactorHandle>,
    registry: Arc<Registry>,
    limits: Limits,
}

impl Server {
    async fn accept(self: Arc<Self>) {
        loop {
            let stream = match self.listener.accept().await {
                Ok(stream) => stream,
                Err(error) if error.kind() == ErrorKind::Cancelled => return,
                Err(error) => {
                    tracing::warn!(%error, socket = %self.socket.display(), "cannot accept NBD clients for now");
                    self.reactors[0].sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Some(seat) = self.registry.admit(stream.clone(), self.limits.connections_max) else {
                tracing::warn!(socket = %self.socket.display(), "an NBD client was turned away: too many connections");
                continue;
            };
            let reactor = &self.reactors[TURN.fetch_add(1, Ordering::Relaxed) % self.reactors.len()];
            let (server, on) = (Arc::clone(&self), reactor.clone());
            reactor.spawn(async move { server.serve(&on, stream, seat).await });
        }
    }

    async fn serve(&self, reactor: &ReactorHandle, stream: Stream, seat: Seat) {
        if let Err(error) = stream.set_send_buffer(SEND_BUFFER) {
            tracing::debug!(%error, "the send buffer keeps its size");
        }
        let mut input = Input::new(stream.clone());
        let handshake = Handshake::new(&stream, &mut input, &seat, self.limits.request_bytes_max);
        let agreed = within(reactor, self.limits.handshake, handshake.run()).await;
        let result = match agreed {
            Some(Ok(Some(agreement))) => {
                tracing::debug!(export = agreement.export.name, "an NBD client begins");
                queue::serve(reactor, &stream, &mut input, agreement, &self.limits).await
            }
            Some(Ok(None)) => Ok(()),
            Some(Err(error)) => Err(error),
            None => Err(Error::new(ErrorKind::Cancelled, "the client took too long over its handshake")),
        };
        if let Err(error) = result {
            tracing::info!(%error, socket = %self.socket.display(), "an NBD connection ended badly");
        }
        stream.shutdown();
    }

    /// Ends connections after what they have in flight; those that take too long, at once.
    async fn end(&self, which: Which<'_>) {
        self.registry.for_each_stream(which, Stream::shutdown_receive);
        if within(&self.reactors[0], GRACE, self.registry.gone(which)).await.is_none() {
            self.registry.for_each_stream(which, Stream::shutdown);
            self.registry.gone(which).await;
        }
    }
}

/// The future's output, or `None` if it takes longer.
async fn within<F: Future>(clock: &ReactorHandle, limit: Duration, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timeout = clock.sleep(limit);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => timeout.as_mut().poll(cx).map(|()| None),
    })
    .await
}

/// Control handle of a running server; cheap to clone. The server runs until [`NbdServerHandle::shutdown`].
#[derive(Clone)]
pub struct NbdServerHandle(Arc<Server>);

impl NbdServerHandle {
    /// Offers another export. `AlreadyExists` if the name is taken.
    pub fn add_export(&self, export: NbdExport) -> Result<()> {
        self.0.registry.add(export)
    }

    /// Stops offering an export: closes its connections after what they have in flight, and waits for that.
    pub async fn remove_export(&self, name: &str) -> Result<()> {
        self.0.registry.remove(name)?;
        self.0.end(Which::Using(name)).await;
        Ok(())
    }

    /// Number of clients that are using the named export.
    pub fn connections(&self, name: &str) -> usize {
        self.0.registry.count(Which::Using(name))
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.0.socket.clone()
    }

    /// Stops listening, lets requests in flight finish, closes every connection, removes the socket.
    pub async fn shutdown(&self) {
        self.0.registry.close();
        self.0.listener.close();
        if let Err(error) = std::fs::remove_file(&self.0.socket) {
            tracing::debug!(%error, socket = %self.0.socket.display(), "the socket file is gone already");
        }
        self.0.end(Which::All).await;
    }
}
