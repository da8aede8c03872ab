//! The client against responses that no gRPC server sends, or none of ours: those of a stub that says what a test likes.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use billing_api::{BillingRequest, BillingResponse, billing_service_client::BillingServiceClient};
use bytes::Bytes;
use config::HostPort;
use grpc::{Attempt, CallError, Client, ClientSettings, Code};
use http_body::{Body, Frame};
use hyper::{HeaderMap, Response, server::conn::http2, service::service_fn};
use prost::Message as _;
use smol_hyper::rt::FuturesIo;
use telemetry::TraceContext;
use testbed::messages;

/// Failures in a row that open the breaker.
const THRESHOLD: usize = 5;

type Headers = &'static [(&'static str, &'static str)];

const GRPC: (&str, &str) = ("content-type", "application/grpc");
const OK: (&str, &str) = ("grpc-status", "0");
const UNKNOWN: (&str, &str) = ("grpc-status", "2");
const NOT_FOUND: (&str, &str) = ("grpc-status", "5");
const UNIMPLEMENTED: (&str, &str) = ("grpc-status", "12");
const ABORTED: (&str, &str) = ("grpc-status", "10");

/// A response as it is on the wire.
#[derive(Clone)]
struct Answer {
    status: u16,
    headers: Headers,
    body: Bytes,
    trailers: Headers,
}

impl Answer {
    fn http(status: u16, headers: Headers, body: &'static str) -> Self {
        Self { status, headers, body: body.into(), trailers: &[] }
    }

    fn with_trailers(self, trailers: Headers) -> Self {
        Self { trailers, ..self }
    }

    /// One whose message is an open account.
    fn grpc(headers: Headers, trailers: Headers) -> Self {
        let message = BillingResponse { account_id: "7".to_owned(), status: "ACTIVE".to_owned() }.encode_to_vec();
        let prefix = [&[0], &u32::try_from(message.len()).unwrap().to_be_bytes()[..]].concat();
        Self { status: 200, headers, body: [prefix, message].concat().into(), trailers }
    }
}

struct Frames(VecDeque<Frame<Bytes>>);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

#[derive(Clone)]
struct Spawner;

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, task: F) {
        runtime::spawn(task).detach();
    }
}

fn map(headers: Headers) -> HeaderMap {
    headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Serves this answer to every call.
async fn serve(answer: Answer) -> SocketAddr {
    serve_current(Arc::new(Mutex::new(answer))).await
}

/// Serves the answer that is there when a call comes.
async fn serve_current(current: Arc<Mutex<Answer>>) -> SocketAddr {
    let listener = smol::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    runtime::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let current = current.clone();
            let respond = service_fn(move |_| {
                let Answer { status, headers, body, trailers } = current.lock().unwrap().clone();
                let mut frames = VecDeque::new();
                if !body.is_empty() {
                    frames.push_back(Frame::data(body));
                }
                if !trailers.is_empty() {
                    frames.push_back(Frame::trailers(map(trailers)));
                }
                let mut response = Response::new(Frames(frames));
                *response.status_mut() = status.try_into().unwrap();
                *response.headers_mut() = map(headers);
                async { Ok::<_, Infallible>(response) }
            });
            runtime::spawn(http2::Builder::new(Spawner).serve_connection(FuturesIo::new(stream), respond)).detach();
        }
    })
    .detach();
    address
}

fn client(address: SocketAddr) -> Client {
    let address = HostPort { host: address.ip().to_string(), port: address.port() };
    let deadline = Duration::from_secs(20);
    Client::new(ClientSettings { peer: "stub", service: "Test", address, deadline, tls: None }).unwrap()
}

async fn create(client: &Client) -> Result<BillingResponse, CallError> {
    let call = |attempt: Attempt| async move {
        let mut stub = BillingServiceClient::new(attempt.channel());
        Ok(stub.create_billing_account(attempt.request(BillingRequest::default())).await?.into_inner())
    };
    client.call("CreateBillingAccount", TraceContext::root(), call).await
}

#[test]
fn a_response_of_something_else_than_a_grpc_server_is_an_outage() {
    let html = "<html>Bad Gateway</html>";
    runtime::block_on(2, async {
        for (answer, cause) in [
            (Answer::http(502, &[("content-type", "text/html")], html), "HTTP 502, text/html"),
            (Answer::http(404, &[("content-type", "text/html")], html), "HTTP 404, text/html"),
            (Answer::http(404, &[], ""), "HTTP 404, no content type"),
            (Answer::http(403, &[GRPC], ""), "HTTP 403, application/grpc"),
            (Answer::http(200, &[("content-type", "text/html")], html), "HTTP 200, text/html"),
            (Answer::http(200, &[GRPC], html), "compression flag"),
            (Answer::http(200, &[GRPC], ""), "missing grpc-status"),
            (Answer::grpc(&[GRPC], &[]), "missing grpc-status"),
            (Answer::grpc(&[GRPC, ("grpc-encoding", "br")], &[OK]), "compressed with"),
            (Answer::http(200, &[GRPC, OK], ""), "Missing response message"),
        ] {
            let client = client(serve(answer).await);
            for _ in 0..THRESHOLD {
                let error = create(&client).await.unwrap_err();
                assert!(matches!(error, CallError::Unreachable(_)), "{cause}: {error}");
                assert!(error.to_string().contains(cause), "{cause}: {error}");
            }
            assert!(client.is_breaker_open(), "{cause}");
        }
    });
}

#[test]
fn a_status_is_the_peers_own_wherever_it_is() {
    runtime::block_on(2, async {
        for answer in [
            Answer::http(200, &[GRPC, NOT_FOUND], ""),
            Answer::http(200, &[GRPC], "").with_trailers(&[NOT_FOUND]),
            Answer::grpc(&[GRPC], &[NOT_FOUND]),
            // The message is not UTF-8.
            Answer::http(200, &[GRPC, NOT_FOUND, ("grpc-message", "caf%E9")], ""),
            // A proxy that knows gRPC.
            Answer::http(404, &[GRPC, NOT_FOUND], ""),
            Answer::http(200, &[NOT_FOUND], ""),
        ] {
            let client = client(serve(answer).await);
            for _ in 0..=THRESHOLD {
                assert_eq!(create(&client).await.unwrap_err().code(), Some(Code::NotFound));
            }
            assert!(!client.is_breaker_open());
        }
    });
}

#[test]
fn details_of_a_status_that_are_not_base64_are_ignored() {
    const DETAILS: (&str, &str) = ("grpc-status-details-bin", "!!!,CAUSBG5vbmU");
    runtime::block_on(2, async {
        for (answer, code) in [
            (Answer::http(200, &[GRPC, NOT_FOUND, DETAILS], ""), Some(Code::NotFound)),
            (Answer::grpc(&[GRPC], &[NOT_FOUND, DETAILS]), Some(Code::NotFound)),
            (Answer::grpc(&[GRPC], &[OK, DETAILS]), None),
            (Answer::grpc(&[GRPC, DETAILS], &[OK]), None),
        ] {
            let outcome = create(&client(serve(answer).await)).await;
            assert_eq!(outcome.err().map(|error| error.code()), code.map(Some));
        }
    });
}

#[test]
fn a_peer_that_answers_everything_with_an_error_is_reported_once_and_is_no_outage() {
    messages::collect("grpc");
    let (begins, ends) = ("peer answers every call with an error", "peer answers without errors again");
    runtime::block_on(2, async {
        let current = Arc::new(Mutex::new(Answer::http(200, &[GRPC, UNKNOWN], "")));
        let client = client(serve_current(current.clone()).await);
        for call in 1..=3 * THRESHOLD {
            assert_eq!(create(&client).await.unwrap_err().code(), Some(Code::Unknown));
            assert_eq!(client.fault().as_deref(), (call >= THRESHOLD).then_some("unknown"), "{call}");
            assert_eq!(messages::count(begins), usize::from(call >= THRESHOLD), "{call}");
        }
        assert!(!client.is_breaker_open());
        // A method that it does not have shows nothing, nor does an account that is locked.
        let others: [Headers; 2] = [&[GRPC, UNIMPLEMENTED], &[GRPC, ABORTED]];
        for headers in others {
            *current.lock().unwrap() = Answer::http(200, headers, "");
            create(&client).await.unwrap_err();
            assert_eq!((client.fault().is_some(), messages::count(ends)), (true, 0), "{headers:?}");
        }
        for _ in 0..2 {
            *current.lock().unwrap() = Answer::http(200, &[GRPC, NOT_FOUND], "");
            create(&client).await.unwrap_err();
            assert_eq!((client.fault(), messages::count(begins), messages::count(ends)), (None, 1, 1));
            // Not in a row.
            *current.lock().unwrap() = Answer::http(200, &[GRPC, UNKNOWN], "");
            for _ in 1..THRESHOLD {
                create(&client).await.unwrap_err();
            }
        }
        *current.lock().unwrap() = Answer::http(200, &[GRPC, ABORTED], "");
        for _ in 0..THRESHOLD {
            create(&client).await.unwrap_err();
        }
        assert_eq!(client.fault(), None);
    });
}
