//! A server of `libs/web` with real connections, and a client that sends arbitrary bytes.
//!
//! Both run on the calling thread in turn, so that an input is always processed in the same way.

use std::{net::SocketAddr, sync::LazyLock, time::Duration};

use config::{Environment, Reader};
use futures_lite::{AsyncReadExt as _, AsyncWriteExt as _, future::yield_now, io::BufReader};
use runtime::Shutdown;
use serde_json::Value as Json;
use smol::net::{Shutdown as Half, TcpStream};
use tide::{Body, Request, Response, StatusCode};
use web::{Limits, Problem, Router, Server, Settings};

/// The limit of a body in bytes; small, so that inputs reach it.
pub(crate) const BODY_LIMIT: usize = 200;
/// A header of responses that are sent while the request is still received.
pub(crate) const STREAMED: &str = "x-streamed";
/// What `/echo` sends before the request's body, so that no body starts like a response.
pub(crate) const ECHO: &str = ".";

/// How much memory the server has for its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// Enough.
    Ample,
    /// For one connection. It is always short, so hyper serves one request at a time and the server reads the heads itself.
    Short,
}

static SERVER: LazyLock<SocketAddr> = LazyLock::new(|| start(Memory::Ample, Shutdown::new()));

/// Starts a server and returns its address.
fn start(memory: Memory, shutdown: Shutdown) -> SocketAddr {
    let environment = Environment::empty().with("SERVER_PORT", "0");
    let mut settings = Settings::read(&mut Reader::new(environment), "0");
    let wait = Duration::from_secs(3);
    settings.limits =
        Limits { body: BODY_LIMIT, head: 8 * 1024, head_timeout: wait, body_timeout: wait, ..settings.limits };
    if memory == Memory::Short {
        settings.limits.buffers = 36 * 1024;
    }
    let app = Router::new(settings.limits.clone())
        .get("/hello", hello)
        .get("/items/:id", item)
        .delete("/items/:id", delete)
        .post("/json", json)
        .post("/echo", echo)
        .build();
    let server = Server::bind(&settings).expect("loopback has a free port");
    let address = server.address();
    runtime::spawn(server.serve(app, shutdown)).detach();
    address
}

/// Sends the pieces, lets the server read after each, and returns its responses when it has closed the connection.
///
/// With `end`, the client closes its side. The server then closes the connection, perhaps before its last response.
pub(crate) fn exchange(pieces: &[&[u8]], end: bool, memory: Memory) -> Vec<u8> {
    runtime::block_on(1, async {
        let shutdown = Shutdown::new();
        let address = match memory {
            Memory::Ample => *SERVER,
            // Of its own, because the connection before may still hold its memory.
            Memory::Short => start(memory, shutdown.clone()),
        };
        let mut stream = TcpStream::connect(address).await.expect("the server accepts");
        stream.set_nodelay(true).expect("it is TCP");
        for piece in pieces {
            // The server has closed the connection after an error response.
            if stream.write_all(piece).await.is_err() {
                break;
            }
            // Long enough for a response, so that the next piece can arrive after it.
            for _ in 0..40 {
                yield_now().await;
            }
        }
        if end {
            // The connection may be closed already.
            let _ = stream.shutdown(Half::Write);
        }
        let mut responses = Vec::new();
        // The connection is reset if the client sends more after the last response; the received bytes are still readable.
        let _ = stream.read_to_end(&mut responses).await;
        shutdown.trigger();
        responses
    })
}

async fn hello(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(web::json(StatusCode::Ok, &"hello"))
}

async fn item(request: Request<Limits>) -> Result<Response, Problem> {
    Ok(web::json(StatusCode::Ok, &request.param("id").unwrap_or_default()))
}

async fn delete(_: Request<Limits>) -> Result<Response, Problem> {
    Ok(web::no_content())
}

/// Reads a whole body of JSON, within the limits.
async fn json(mut request: Request<Limits>) -> Result<Response, Problem> {
    let limits = request.state().clone();
    let body: Json = web::read_json(&mut request, &limits).await?;
    Ok(web::json(StatusCode::Ok, &[body]))
}

/// Streams the request's body back.
async fn echo(mut request: Request<Limits>) -> Result<Response, Problem> {
    let mut response = Response::new(StatusCode::Ok);
    let length = request.len().map(|length| length + ECHO.len());
    response.insert_header(STREAMED, "yes");
    let body = futures_lite::AsyncReadExt::chain(ECHO.as_bytes(), request.take_body());
    response.set_body(Body::from_reader(BufReader::new(body), length));
    Ok(response)
}
