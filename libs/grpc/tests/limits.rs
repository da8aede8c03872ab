//! Limits of the server: connections, memory, calls in flight and deadlines.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, DESCRIPTORS, GetBillingAccountRequest,
    ListTransactionsRequest, RecordTransactionRequest, Transaction,
    billing_service_server::{BillingService, BillingServiceServer},
};
use futures_lite::{Stream, StreamExt as _, stream};
use grpc::{Code, Health, Limits, Request, Response, Routes, Server, ServerSettings, Status};
use runtime::Shutdown;
use testbed::http2::{Connection, DATA, END_HEADERS, Frame, HEADERS, RST_STREAM, WINDOW_UPDATE, head};

const CREATE: &str = "/BillingService/CreateBillingAccount";
const LIST: &str = "/BillingService/ListTransactions";
/// Time for what a test waits for.
const TIMEOUT: Duration = Duration::from_secs(30);
/// A limit that is not reached in a test's time.
const LONG: Duration = Duration::from_secs(120);

/// Responds by the name in the request, and lists without an end.
#[derive(Clone, Default)]
struct Scripted {
    running: Arc<AtomicUsize>,
}

#[grpc::async_trait]
impl BillingService for Scripted {
    type ListTransactionsStream = Pin<Box<dyn Stream<Item = Result<Transaction, Status>> + Send>>;

    async fn create_billing_account(
        &self,
        request: Request<BillingRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        self.running.fetch_add(1, Ordering::SeqCst);
        if request.into_inner().name == "hang" {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(BillingResponse::default()))
    }

    async fn get_billing_account(
        &self,
        _: Request<GetBillingAccountRequest>,
    ) -> Result<Response<BillingAccount>, Status> {
        Err(Status::not_found("none"))
    }

    async fn close_billing_account(
        &self,
        _: Request<CloseBillingAccountRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        Err(Status::not_found("none"))
    }

    async fn record_transaction(&self, _: Request<RecordTransactionRequest>) -> Result<Response<Transaction>, Status> {
        Err(Status::not_found("none"))
    }

    async fn list_transactions(
        &self,
        request: Request<ListTransactionsRequest>,
    ) -> Result<Response<Self::ListTransactionsStream>, Status> {
        let entries = stream::repeat_with(|| Ok(Transaction { transaction_id: "t".repeat(64), ..Default::default() }));
        Ok(Response::new(match request.into_inner().limit {
            0 => Box::pin(entries),
            some => Box::pin(entries.take(some as usize).chain(stream::pending())),
        }))
    }
}

fn with_server<F: Future<Output = ()>>(limits: Limits, test: impl FnOnce(SocketAddr, Scripted) -> F) {
    runtime::block_on(2, async {
        let settings = ServerSettings {
            address: ([127, 0, 0, 1], 0).into(),
            drain: Duration::from_millis(10),
            tls: None,
            max_connection_age: None,
        };
        let server = Server::bind(&settings).unwrap().with_limits(limits);
        let (address, shutdown, scripted) = (server.address(), Shutdown::new(), Scripted::default());
        let routes = Routes::new(BillingServiceServer::new(scripted.clone()));
        let health = Health::not_serving("BillingService").await;
        let serving = runtime::spawn(server.serve(routes, health, DESCRIPTORS, shutdown.clone()));
        test(address, scripted).await;
        shutdown.trigger();
        serving.await.unwrap();
    });
}

/// Time limits of which none is reached in a test.
fn no_limits() -> Limits {
    Limits {
        call: LONG,
        queue_wait: LONG,
        reader_wait: LONG,
        handshake: LONG,
        write_wait: LONG,
        keep_alive: (LONG, LONG),
        ..Limits::default()
    }
}

/// A `BillingRequest` with this name.
fn named(name: &str) -> Vec<u8> {
    [&[0x12, name.len() as u8], name.as_bytes()].concat()
}

/// A `ListTransactionsRequest` with this limit.
fn limited(limit: u8) -> Vec<u8> {
    vec![0x18, limit]
}

/// The last frame of a stream.
async fn end(connection: &mut Connection, stream: u32) -> Frame {
    loop {
        let frame = connection.receive(TIMEOUT).await.unwrap().expect("the connection is open");
        if frame.stream == stream && frame.is_end() {
            return frame;
        }
    }
}

fn code(frame: &Frame) -> Option<Code> {
    frame.grpc_status().map(|code| Code::from_i32(code.into()))
}

async fn is_answered(address: SocketAddr) -> Option<Code> {
    let mut connection = Connection::open_with_window(address, 1 << 16).await.unwrap();
    connection.call(1, CREATE, &[], &named("Jane Doe")).await.unwrap();
    code(&end(&mut connection, 1).await)
}

#[test]
fn a_deadline_that_passes_is_deadline_exceeded_before_and_within_a_response() {
    with_server(no_limits(), |address, _| async move {
        let mut connection = Connection::open_with_window(address, 1 << 16).await.unwrap();
        let soon = [("grpc-timeout", "100m")];
        connection.call(1, CREATE, &soon, &named("hang")).await.unwrap();
        assert_eq!(code(&end(&mut connection, 1).await), Some(Code::DeadlineExceeded), "of the client, no answer");
        connection.call(3, LIST, &soon, &limited(3)).await.unwrap();
        assert_eq!(code(&end(&mut connection, 3).await), Some(Code::DeadlineExceeded), "of the client, in the middle");
        connection.frame(HEADERS, END_HEADERS, 5, &head(CREATE, &soon)).await.unwrap();
        assert_eq!(code(&end(&mut connection, 5).await), Some(Code::DeadlineExceeded), "of the client, no request");
        // The client's window is full until long after the deadline.
        let mut slow = Connection::open_with_window(address, 100).await.unwrap();
        slow.call(1, LIST, &soon, &limited(0)).await.unwrap();
        while slow.receive(TIMEOUT).await.unwrap().unwrap().kind != DATA {}
        smol::Timer::after(Duration::from_millis(200)).await;
        slow.increase_window(0, 1 << 20).await.unwrap();
        slow.increase_window(1, 1 << 20).await.unwrap();
        assert_eq!(code(&end(&mut slow, 1).await), Some(Code::DeadlineExceeded), "of the client, no room");
    });
    with_server(Limits { call: Duration::from_millis(100), ..no_limits() }, |address, _| async move {
        let mut connection = Connection::open_with_window(address, 1 << 16).await.unwrap();
        for (stream, more) in [(1, &[][..]), (3, &[("grpc-timeout", "1H")])] {
            connection.call(stream, CREATE, more, &named("hang")).await.unwrap();
            assert_eq!(code(&end(&mut connection, stream).await), Some(Code::DeadlineExceeded), "of the server");
        }
    });
}

#[test]
fn a_call_may_have_the_largest_baggage_or_token() {
    with_server(no_limits(), |address, _| async move {
        let mut connection = Connection::open_with_window(address, 1 << 16).await.unwrap();
        let value = "x".repeat(8192);
        for (stream, name) in [(1, "baggage"), (3, "authorization")] {
            connection.call(stream, CREATE, &[(name, &value), ("tracestate", &value[..512])], &[]).await.unwrap();
            assert_eq!(code(&end(&mut connection, stream).await), Some(Code::Ok), "{name}");
        }
    });
}

#[test]
fn connections_are_bounded_and_the_least_recently_used_is_closed() {
    with_server(Limits { connections: 4, ..no_limits() }, |address, scripted| async move {
        let mut busy = Connection::open_with_window(address, 1 << 16).await.unwrap();
        busy.call(1, CREATE, &[], &named("hang")).await.unwrap();
        while scripted.running.load(Ordering::SeqCst) == 0 {
            smol::Timer::after(Duration::from_millis(1)).await;
        }
        let mut idle = Vec::new();
        for _ in 0..20 {
            idle.push(Connection::open_with_window(address, 1 << 16).await.unwrap());
        }
        assert_eq!(is_answered(address).await, Some(Code::Ok), "another connection is accepted");
        for connection in &mut idle[..16] {
            connection.until_closed(TIMEOUT).await.unwrap();
        }
        busy.call(3, CREATE, &[], &named("Jane Doe")).await.unwrap();
        assert_eq!(code(&end(&mut busy, 3).await), Some(Code::Ok), "one with an active call stays");
    });
}

#[test]
fn a_connection_without_a_handshake_is_closed() {
    with_server(Limits { handshake: Duration::from_millis(100), ..no_limits() }, |address, _| async move {
        let mut silent = Connection::open(address).await.unwrap();
        let mut half = Connection::open(address).await.unwrap();
        half.send(&testbed::http2::PREFACE[..20]).await.unwrap();
        let mut begun = Connection::open_with_window(address, 1 << 16).await.unwrap();
        silent.until_closed(TIMEOUT).await.unwrap();
        half.until_closed(TIMEOUT).await.unwrap();
        begun.call(1, CREATE, &[], &named("Jane Doe")).await.unwrap();
        assert_eq!(code(&end(&mut begun, 1).await), Some(Code::Ok));
    });
}

#[test]
fn endless_headers_and_a_client_that_is_gone_end_with_the_keep_alive() {
    // A client that answers may be late on a busy machine.
    let keep_alive = (Duration::from_millis(200), Duration::from_secs(3));
    with_server(Limits { keep_alive, ..no_limits() }, |address, _| async move {
        let mut connection = Connection::open_with_window(address, 1 << 16).await.unwrap();
        // No END_HEADERS: until a CONTINUATION comes, the client cannot even answer a ping.
        connection.frame(HEADERS, 0, 1, &head(CREATE, &[])).await.unwrap();
        connection.until_closed(TIMEOUT).await.unwrap();
        let mut silent = Connection::open_with_window(address, 1 << 16).await.unwrap();
        silent.until_closed(TIMEOUT).await.unwrap();
        // One that answers pings stays.
        let mut idle = Connection::open_with_window(address, 1 << 16).await.unwrap();
        let received = idle.receive(Duration::from_secs(2)).await;
        let acknowledged = received.unwrap().map(|frame| frame.kind);
        assert_eq!(acknowledged, Some(testbed::http2::SETTINGS), "the acknowledgement of ours");
        let nothing = idle.receive(Duration::from_secs(2)).await.map(|frame| frame.map(|frame| frame.kind));
        if let Ok(kind) = nothing {
            assert_eq!(kind, Some(testbed::http2::WINDOW_UPDATE), "the connection is open");
        }
        idle.call(1, CREATE, &[], &named("Jane Doe")).await.unwrap();
        assert_eq!(code(&end(&mut idle, 1).await), Some(Code::Ok));
    });
}

#[test]
fn incomplete_requests_block_no_others_and_their_bytes_are_bounded() {
    let limits = Limits { request_bytes: 20 * 8 * 1024, in_flight: 4, ..no_limits() };
    with_server(limits, |address, _| async move {
        let started = Instant::now();
        let mut clients = Vec::new();
        for _ in 0..4 {
            let mut client = Connection::open_with_window(address, 1 << 16).await.unwrap();
            for call in 0..20 {
                // A head, and the first byte of a request at most.
                client.frame(HEADERS, END_HEADERS, 2 * call + 1, &head(CREATE, &[])).await.unwrap();
                client.frame(DATA, 0, 2 * call + 1, &vec![0; call as usize % 2]).await.unwrap();
            }
            clients.push(client);
        }
        // There is room for 20; the others were evicted for later ones.
        let mut evicted = 0;
        while evicted < 60 {
            for client in &mut clients {
                while let Ok(frame) = client.receive(Duration::from_millis(10)).await {
                    let frame = frame.expect("the connection is open");
                    assert!(matches!(code(&frame), None | Some(Code::ResourceExhausted)), "{frame:?}");
                    evicted += u32::from(frame.grpc_status().is_some());
                }
            }
            assert!(started.elapsed() < TIMEOUT, "{evicted} were evicted");
        }
        // Not before: of heads that arrive later, each may take the room of a call whose request is not read yet.
        for _ in 0..25 {
            assert_eq!(is_answered(address).await, Some(Code::Ok));
        }
        // The server's stream window applies once its SETTINGS are acknowledged.
        let mut large = Connection::open_with_window(address, 1 << 16).await.unwrap();
        large.call(1, CREATE, &[], &named("Jane Doe")).await.unwrap();
        assert_eq!(code(&end(&mut large, 1).await), Some(Code::Ok));
        large.frame(HEADERS, END_HEADERS, 3, &head(CREATE, &[])).await.unwrap();
        let rejected = loop {
            large.frame(DATA, 0, 3, &[0; 14_000]).await.unwrap();
            let frame = loop {
                let frame = large.receive(TIMEOUT).await.unwrap().expect("the connection is open");
                if frame.stream == 3 {
                    break frame;
                }
            };
            if frame.kind != WINDOW_UPDATE {
                break frame;
            }
        };
        assert_eq!(code(&rejected), Some(Code::OutOfRange), "more than a request may have");
    });
}

#[test]
fn calls_in_flight_are_bounded_and_further_ones_wait_or_are_rejected() {
    let limits = Limits { in_flight: 2, queue_wait: Duration::from_millis(100), ..no_limits() };
    with_server(limits, |address, scripted| async move {
        let mut connection = Connection::open_with_window(address, 1 << 16).await.unwrap();
        for stream in [1, 3] {
            connection.call(stream, CREATE, &[], &named("hang")).await.unwrap();
        }
        while scripted.running.load(Ordering::SeqCst) < 2 {
            smol::Timer::after(Duration::from_millis(1)).await;
        }
        assert_eq!(is_answered(address).await, Some(Code::ResourceExhausted));
        assert_eq!(scripted.running.load(Ordering::SeqCst), 2, "it did not begin");
        // A call whose client has reset the stream releases its permit.
        connection.frame(RST_STREAM, 0, 1, &8_u32.to_be_bytes()).await.unwrap();
        while is_answered(address).await != Some(Code::Ok) {}
    });
}

#[test]
fn responses_that_are_not_read_are_aborted_and_never_end_with_ok() {
    with_server(Limits { reader_wait: Duration::from_millis(100), ..no_limits() }, |address, _| async move {
        let mut connection = Connection::open_with_window(address, 100).await.unwrap();
        connection.call(1, LIST, &[], &limited(0)).await.unwrap();
        let end = end(&mut connection, 1).await;
        assert_eq!((end.kind, code(&end)), (RST_STREAM, None), "the stream was reset");
    });
    // When there are too many, the one that has not been read for longest is aborted.
    with_server(Limits { responses: 2, ..no_limits() }, |address, _| async move {
        let mut connection = Connection::open_with_window(address, 100).await.unwrap();
        for stream in [1, 3, 5] {
            connection.call(stream, LIST, &[], &limited(0)).await.unwrap();
            loop {
                let frame = connection.receive(TIMEOUT).await.unwrap().unwrap();
                if frame.stream == stream && frame.kind == DATA {
                    break;
                }
                if frame.is_end() {
                    assert_eq!((frame.kind, frame.stream), (RST_STREAM, 1));
                }
            }
        }
        assert_eq!(is_answered(address).await, Some(Code::Ok));
    });
}
