//! The server's life: accept, serve, end. Own loop, because a stranger's connection gets a place, a
//! time for its headers and a time for each piece of its answer.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

use crate::error::Error;
use crate::metrics::Metric;
use crate::stall::Impatient;
use crate::state::State;
use crate::{router, router::Route, tls};

/// Asks a server to end, from any thread.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<watch::Sender<bool>>);

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown(Arc::new(watch::Sender::new(false)))
    }
}

impl Shutdown {
    /// The server takes no more connections, lets running answers end, and returns.
    pub fn ask(&self) {
        self.0.send_replace(true);
    }

    async fn asked(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}

/// How long a TLS handshake may take.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long answers have to say that they were cut.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The longest head of a request, in bytes, and the most headers.
pub(crate) const HEAD: usize = 32 << 10;
pub(crate) const HEADERS: usize = 100;

/// Serves these routes (mostly [`crate::routes()`]) until it is asked to end. Blocks the thread; the work is done by one or two threads of
/// its own.
///
/// `started` is called once it serves, and ends when it is asked to.
///
/// # Errors
/// When the listener, the certificate or the threads cannot be used.
pub fn run(
    listener: TcpListener,
    state: State,
    routes: Vec<Route>,
    shutdown: &Shutdown,
    started: impl FnOnce(),
) -> Result<(), Error> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(if cores > 2 { 2 } else { 1 })
        .max_blocking_threads(4)
        .thread_name("puna-http")
        .enable_all()
        .build()
        .map_err(Error::io("start the server's threads"))?;
    let result = runtime.block_on(serve(listener, state.clone(), routes, shutdown, started));
    // What still runs is cut here, and so has ended before the journal is closed.
    runtime.shutdown_timeout(Duration::from_secs(1));
    state.close();
    result
}

async fn serve(
    listener: TcpListener,
    state: State,
    routes: Vec<Route>,
    shutdown: &Shutdown,
    started: impl FnOnce(),
) -> Result<(), Error> {
    let listen = || Error::io("listen");
    listener.set_nonblocking(true).map_err(listen())?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(listen())?;
    let tls = state
        .settings()
        .tls
        .as_ref()
        .map(|(cert, key)| tls::acceptor(cert, key))
        .transpose()?;
    let places = Arc::new(Semaphore::new(
        state.settings().max_connections.min(Semaphore::MAX_PERMITS),
    ));
    let service = TowerToHyperService::new(router::router(state.clone(), routes));
    let graceful = GracefulShutdown::new();
    let end = end(&state, shutdown);
    tokio::pin!(end);
    started();
    loop {
        let next = async {
            // The semaphore is never closed.
            let place = places.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = &mut end => break,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            // Too many files, mostly: it passes.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (service, watcher) = (service.clone(), graceful.watcher());
        let (state, tls) = (state.clone(), tls.clone());
        tokio::spawn(async move {
            state.metrics().shift(Metric::HttpConnections, &[], 1);
            connection(stream, tls, service, watcher, &state).await;
            state.metrics().shift(Metric::HttpConnections, &[], -1);
            drop(place);
        });
    }
    drop(listener);
    state.set_ready(false);
    let ended = graceful.shutdown();
    tokio::pin!(ended);
    let grace = state.settings().grace;
    if tokio::time::timeout(grace, &mut ended).await.is_err() {
        tracing::warn!("answers that did not end in time were cut");
        state.cut();
        // They say so to their clients.
        let _ = tokio::time::timeout(LAST_WORDS, ended).await;
    }
    Ok(())
}

type Service = TowerToHyperService<axum::Router>;

async fn connection(
    stream: tokio::net::TcpStream,
    tls: Option<TlsAcceptor>,
    service: Service,
    watcher: Watcher,
    state: &State,
) {
    match tls {
        None => speak(stream, service, watcher, state).await,
        Some(tls) => {
            if let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                speak(stream, service, watcher, state).await;
            }
        }
    }
}

/// HTTP/1.1 on one connection. What a stranger does wrong on it is no news.
async fn speak<I>(io: I, service: Service, watcher: Watcher, state: &State)
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(state.settings().header_timeout)
        .max_buf_size(HEAD)
        .max_headers(HEADERS)
        // A token's event is short: to copy it into one piece is cheaper than to name its pieces.
        .writev(false)
        .serve_connection(
            TokioIo::new(Impatient::new(io, state.settings().write_timeout)),
            service,
        );
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!("a connection ended: {error}");
    }
}

/// Until the end is asked for, by the caller or by the system. The system's signal is heard from now on.
#[cfg(unix)]
fn end(state: &State, shutdown: &Shutdown) -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let heard = state.settings().terminate;
    let heard = heard
        .then(|| signal(SignalKind::terminate()).ok())
        .flatten();
    let shutdown = shutdown.clone();
    async move {
        match heard {
            Some(mut terminate) => tokio::select! {
                () = shutdown.asked() => {}
                _ = terminate.recv() => {}
            },
            None => shutdown.asked().await,
        }
    }
}

#[cfg(not(unix))]
fn end(_: &State, shutdown: &Shutdown) -> impl Future<Output = ()> {
    let shutdown = shutdown.clone();
    async move { shutdown.asked().await }
}
