//! A TCP proxy that injects network faults: lost responses, half-open connections, resets in the middle of a call.

use std::{
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use percent_encoding::percent_decode_str;
use smol::{
    Task,
    future::or,
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, unix::UnixStream},
};
use socket2::SockRef;

/// How often a waiting connection checks the mode.
const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// What a proxy does with open and new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    /// Forwards everything.
    Pass,
    /// Forwards nothing and closes nothing, as if a cable were cut.
    Stall,
    /// Forwards requests, and no responses.
    StallResponses,
    /// Resets every connection, new ones at once.
    Reset,
}

const MODES: [Mode; 4] = [Mode::Pass, Mode::Stall, Mode::StallResponses, Mode::Reset];

/// The address that a proxy forwards to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A port of the loopback address.
    Port(u16),
    /// Another address of loopback.
    Address(SocketAddr),
    /// A Unix socket, such as PostgreSQL's.
    Socket(PathBuf),
}

/// A running proxy. Dropping it closes its connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: Task<()>,
}

#[derive(Debug, Default)]
struct Shared {
    mode: AtomicU8,
    accepted: AtomicUsize,
    target: Mutex<Option<Target>>,
    /// Each connection that was opened since the open ones were ended last holds a clone.
    generation: Mutex<Arc<Generation>>,
}

/// The connections that end together.
#[derive(Debug, Default)]
struct Generation {
    /// What their clients receive before the connections are closed; without it they are reset.
    final_bytes: OnceLock<Vec<u8>>,
}

type Reader = Box<dyn AsyncRead + Send + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Unpin>;

impl Proxy {
    /// Listens on a free port. Connections are reset until there is a target.
    ///
    /// # Errors
    /// If the port cannot be bound.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let (address, shared) = (listener.local_addr()?, Arc::new(Shared::default()));
        let accepting = runtime::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, _accepting: accepting })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// A proxy in front of the database at this URL, which names a Unix socket's directory, and the URL through the proxy.
    ///
    /// # Errors
    /// If the port cannot be bound, or the URL names no such directory.
    pub async fn to_postgres(url: &str) -> io::Result<(Self, String)> {
        let (rest, host) = url.split_once("?host=").ok_or_else(|| io::Error::other("the URL names no socket"))?;
        let directory = percent_decode_str(host).decode_utf8_lossy().into_owned();
        let proxy = Self::start().await?;
        proxy.set_target(Target::Socket(PathBuf::from(directory).join(".s.PGSQL.5432")));
        let url = rest.replace("localhost", &format!("127.0.0.1:{}", proxy.port()));
        Ok((proxy, url))
    }

    /// Sets the target of new connections.
    pub fn set_target(&self, target: Target) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = Some(target);
    }

    /// Sets the mode.
    pub fn set(&self, mode: Mode) {
        self.shared.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Resets the open connections and waits until they are closed. The mode of new ones does not change.
    pub async fn reset_open(&self) {
        self.end_open(None).await;
    }

    /// Sends `final_bytes` to the clients of the open connections and closes these, as a proxy does that has lost its server;
    /// responses that were stalled are dropped. Waits until they are closed. The mode of new ones does not change.
    pub async fn close_open_with(&self, final_bytes: &[u8]) {
        self.end_open(Some(final_bytes)).await;
    }

    async fn end_open(&self, final_bytes: Option<&[u8]>) {
        let before = {
            let mut generation = self.shared.generation();
            if let Some(final_bytes) = final_bytes {
                let _ = generation.final_bytes.set(final_bytes.to_vec());
            }
            std::mem::take(&mut *generation)
        };
        while Arc::strong_count(&before) > 1 {
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    /// How many connections it has accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn mode(&self) -> Mode {
        MODES[usize::from(self.mode.load(Ordering::SeqCst))]
    }

    fn generation(&self) -> MutexGuard<'_, Arc<Generation>> {
        self.generation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn until(&self, condition: impl Fn(Mode) -> bool) {
        while !condition(self.mode()) {
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }

    async fn connect(&self) -> io::Result<(Reader, Writer)> {
        let target = self.target.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match target {
            Some(Target::Port(port)) => connect_tcp(SocketAddr::from(([127, 0, 0, 1], port))).await,
            Some(Target::Address(address)) => connect_tcp(address).await,
            Some(Target::Socket(path)) => {
                let stream = UnixStream::connect(path).await?;
                Ok((Box::new(stream.clone()), Box::new(stream)))
            }
            None => Err(io::Error::other("no target yet")),
        }
    }
}

async fn connect_tcp(address: SocketAddr) -> io::Result<(Reader, Writer)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok((Box::new(stream.clone()), Box::new(stream)))
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = Vec::new();
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        connections.retain(|connection: &Task<()>| !connection.is_finished());
        connections.push(runtime::spawn(serve(client, shared.clone())));
    }
}

async fn serve(client: TcpStream, shared: Arc<Shared>) {
    let generation = shared.generation().clone();
    let pass = async {
        // Nothing would accept a connection behind a cut cable. The kernel has accepted this one, so it is left silent.
        shared.until(|mode| mode != Mode::Stall).await;
        let (responses, requests) = shared.connect().await?;
        client.set_nodelay(true)?;
        let requests = pump(Box::new(client.clone()), requests, || shared.until(|mode| mode != Mode::Stall));
        let responses = pump(responses, Box::new(client.clone()), || shared.until(|mode| mode == Mode::Pass));
        or(requests, responses).await
    };
    let reset = async {
        shared.until(|mode| mode == Mode::Reset || !Arc::ptr_eq(&generation, &shared.generation())).await;
        Err(io::Error::other("reset"))
    };
    if or(reset, pass).await.is_err() {
        if let Some(final_bytes) = generation.final_bytes.get() {
            let _ = client.clone().write_all(final_bytes).await;
        } else {
            // Without lingering, closing sends a reset.
            let _ = SockRef::from(&client).set_linger(Some(Duration::ZERO));
        }
    }
    drop(client);
    drop(generation);
}

/// Copies bytes, each time after `may_pass`, until the end of the stream.
async fn pump<F: Future<Output = ()>>(mut from: Reader, mut to: Writer, may_pass: impl Fn() -> F) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        may_pass().await;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

#[cfg(test)]
mod tests {
    use runtime::timeout;

    use super::*;

    #[test]
    fn each_mode_forwards_stalls_or_resets() {
        runtime::block_on(1, async {
            let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let proxy = Proxy::start().await.unwrap();
            proxy.set_target(Target::Port(server.local_addr().unwrap().port()));
            let mut client = TcpStream::connect(proxy.address).await.unwrap();
            let (mut peer, _) = server.accept().await.unwrap();
            let (mut byte, moment) = ([0], Duration::from_millis(50));

            client.write_all(b"a").await.unwrap();
            peer.read_exact(&mut byte).await.unwrap();
            proxy.set(Mode::StallResponses);
            client.write_all(b"b").await.unwrap();
            peer.read_exact(&mut byte).await.unwrap();
            peer.write_all(b"c").await.unwrap();
            assert!(timeout(moment, client.read_exact(&mut byte)).await.is_err());
            proxy.set(Mode::Stall);
            client.write_all(b"d").await.unwrap();
            assert!(timeout(moment, peer.read_exact(&mut byte)).await.is_err());
            proxy.set(Mode::Pass);
            client.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, *b"c");
            peer.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, *b"d");
            proxy.set(Mode::Reset);
            assert!(timeout(Duration::from_secs(5), client.read_exact(&mut byte)).await.unwrap().is_err());
            assert_eq!(proxy.accepted(), 1);

            proxy.set(Mode::Pass);
            let mut client = TcpStream::connect(proxy.address).await.unwrap();
            let (mut peer, _) = server.accept().await.unwrap();
            client.write_all(b"e").await.unwrap();
            peer.read_exact(&mut byte).await.unwrap();
            proxy.reset_open().await;
            assert!(timeout(Duration::from_secs(5), client.read_exact(&mut byte)).await.unwrap().is_err());
            let mut client = TcpStream::connect(proxy.address).await.unwrap();
            let (mut peer, _) = server.accept().await.unwrap();
            client.write_all(b"f").await.unwrap();
            peer.read_exact(&mut byte).await.unwrap();
            assert_eq!(byte, *b"f");
            proxy.set(Mode::StallResponses);
            peer.write_all(b"lost").await.unwrap();
            proxy.close_open_with(b"last bytes").await;
            let mut received = Vec::new();
            timeout(Duration::from_secs(5), client.read_to_end(&mut received)).await.unwrap().unwrap();
            assert_eq!(received, b"last bytes");
        });
    }
}
