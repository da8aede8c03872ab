//! Server and client over a real connection, both on smol.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{
    net::{SocketAddr, TcpListener},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use billing_api::{
    BillingAccount, BillingRequest, BillingResponse, CloseBillingAccountRequest, DESCRIPTORS, GetBillingAccountRequest,
    ListTransactionsRequest, RecordTransactionRequest, Transaction,
    billing_service_client::BillingServiceClient,
    billing_service_server::{BillingService, BillingServiceServer},
};
use config::HostPort;
use futures_lite::{Stream, StreamExt as _, stream};
use grpc::{
    CallError, Client, ClientSettings, Code, FailureKind, Health, Limits, Request, Response, Routes, Server,
    ServerSettings, Status,
};
use runtime::Shutdown;
use telemetry::{Propagated, TraceContext};

const DEADLINE: Duration = Duration::from_millis(500);
/// Calls of a test that waits for what happens seldom.
const CALLS: u32 = 100;

/// Responds by the name in the request.
#[derive(Clone, Default)]
struct Scripted {
    calls: Arc<AtomicU32>,
}

#[tonic::async_trait]
impl BillingService for Scripted {
    type ListTransactionsStream = Pin<Box<dyn Stream<Item = Result<Transaction, Status>> + Send>>;

    async fn create_billing_account(
        &self,
        request: Request<BillingRequest>,
    ) -> Result<Response<BillingResponse>, Status> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        let trace_id = grpc::trace(&request).trace_id();
        match request.into_inner().name.as_str() {
            "unavailable once" if call == 0 => Err(Status::unavailable("not yet")),
            "unavailable" => Err(Status::unavailable("never")),
            "invalid" => Err(Status::invalid_argument("no")),
            "hang" => std::future::pending().await,
            "propagated" => {
                let names: Vec<_> = Propagated::current().headers().map(|(name, _)| name).collect();
                Ok(Response::new(BillingResponse { account_id: names.join(","), ..Default::default() }))
            }
            // A timer of smol's inside tonic's handler: what a query to the database is made of.
            _ => {
                smol::Timer::after(Duration::from_millis(1)).await;
                Ok(Response::new(BillingResponse { account_id: trace_id, status: "ACTIVE".to_owned() }))
            }
        }
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
        _: Request<ListTransactionsRequest>,
    ) -> Result<Response<Self::ListTransactionsStream>, Status> {
        let all = (1..=1000).map(|position| Ok(Transaction { position, ..Default::default() }));
        Ok(Response::new(Box::pin(stream::iter(all))))
    }
}

fn client(address: SocketAddr) -> Client {
    client_until(address, DEADLINE)
}

fn client_until(address: SocketAddr, deadline: Duration) -> Client {
    let address = HostPort { host: address.ip().to_string(), port: address.port() };
    Client::new(ClientSettings { peer: "test", service: "Test", address, deadline, tls: None }).unwrap()
}

async fn create(client: &Client, name: &str, trace: TraceContext) -> Result<BillingResponse, CallError> {
    let call = |attempt: grpc::Attempt| async move {
        let request = BillingRequest { name: name.to_owned(), ..Default::default() };
        let mut client = BillingServiceClient::new(attempt.channel());
        Ok(client.create_billing_account(attempt.request(request)).await?.into_inner())
    };
    client.call("CreateBillingAccount", trace, call).await
}

fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Client, Scripted) -> F) {
    with_limits(Limits::default(), test);
}

/// Runs `test` against a server, then stops the server, which must end in time.
fn with_limits<F: Future<Output = ()>>(limits: Limits, test: impl FnOnce(Client, Scripted) -> F) {
    runtime::block_on(2, async {
        let settings = ServerSettings {
            address: ([127, 0, 0, 1], 0).into(),
            drain: Duration::from_secs(5),
            tls: None,
            max_connection_age: None,
        };
        let server = Server::bind(&settings).unwrap().with_limits(limits);
        let (address, shutdown, scripted) = (server.address(), Shutdown::new(), Scripted::default());
        let health = Health::not_serving("BillingService").await;
        health.set_serving(true).await;
        let routes = Routes::new(BillingServiceServer::new(scripted.clone()));
        let serving = runtime::spawn(server.serve(routes, health, DESCRIPTORS, shutdown.clone()));
        test(client(address), scripted).await;
        shutdown.trigger();
        let stopping = Instant::now();
        serving.await.unwrap();
        assert!(stopping.elapsed() < Duration::from_secs(4), "the drain has nothing to wait for");
    });
}

#[test]
fn a_call_carries_its_trace_and_comes_back() {
    with_server(|client, _| async move {
        let trace = TraceContext::root();
        let answer = create(&client, "", trace).await.unwrap();
        assert_eq!((answer.account_id, answer.status.as_str()), (trace.trace_id(), "ACTIVE"));
    });
}

#[test]
fn no_baggage_makes_a_call_too_large_for_its_peer() {
    // The limit of Java's servers.
    with_limits(Limits { head: 8192, ..Limits::default() }, |client, _| async move {
        let trace = TraceContext::root();
        let (traceparent, tracestate) = (trace.to_string(), format!("a={}", "x".repeat(510)));
        for (bytes, expected) in [
            (6000, "tracestate,baggage"),
            // Neither is too long for itself.
            (7000, "tracestate"),
            (8192, "tracestate"),
        ] {
            let baggage = format!("a={}", "x".repeat(bytes - 2));
            let received = [("traceparent", &traceparent), ("tracestate", &tracestate), ("baggage", &baggage)];
            let value = |name| received.iter().filter(move |(key, _)| *key == name).map(|(_, value)| value.as_str());
            let answer = Propagated::extract(value).scope(create(&client, "propagated", trace)).await;
            assert_eq!(answer.map_err(|error| error.to_string()).unwrap().account_id, expected, "{bytes}");
        }
    });
}

#[test]
fn a_stream_is_read_within_one_call() {
    with_server(|client, _| async move {
        let list = |attempt: grpc::Attempt| async move {
            let mut client = BillingServiceClient::new(attempt.channel());
            let request = attempt.request(ListTransactionsRequest::default());
            let stream = client.list_transactions(request).await?.into_inner();
            stream.map(|item| item.map(|transaction| transaction.position)).try_collect::<i64, Status, Vec<_>>().await
        };
        let positions = client.call("ListTransactions", TraceContext::root(), list).await.unwrap();
        assert_eq!(positions, (1..=1000).collect::<Vec<_>>());
    });
}

#[test]
fn only_unavailable_is_retried() {
    with_server(|client, scripted| async move {
        create(&client, "unavailable once", TraceContext::root()).await.unwrap();
        assert_eq!(scripted.calls.swap(0, Ordering::SeqCst), 2);

        let error = create(&client, "invalid", TraceContext::root()).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::InvalidArgument));
        assert_ne!(error.kind(), FailureKind::Unavailable);
        assert_eq!(scripted.calls.swap(0, Ordering::SeqCst), 1);

        let error = create(&client, "unavailable", TraceContext::root()).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Unavailable));
        assert_eq!(error.kind(), FailureKind::Unavailable);
        assert_eq!(scripted.calls.swap(0, Ordering::SeqCst), 3);
    });
}

#[test]
fn a_peer_that_hangs_costs_the_deadline_and_no_more() {
    with_server(|client, _| async move {
        let started = Instant::now();
        let error = create(&client, "hang", TraceContext::root()).await.unwrap_err();
        assert_eq!(error.kind(), FailureKind::Unavailable);
        assert!((DEADLINE..DEADLINE * 3).contains(&started.elapsed()), "{:?}", started.elapsed());
    });
}

#[test]
fn a_call_whose_connection_is_closed_ends_at_once() {
    runtime::block_on(2, async {
        let listener = smol::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicU32::new(0));
        let count = accepted.clone();
        runtime::spawn(async move {
            while listener.accept().await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        })
        .detach();
        let calls = (0..CALLS).map(|_| {
            runtime::spawn(async move {
                let client = client_until(address, Duration::from_secs(60));
                let error = create(&client, "", TraceContext::root()).await.unwrap_err();
                assert!(matches!(error, CallError::Unreachable(_)), "{error}");
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await;
        }
        // An attempt has one connection: without a pause the client would make as many as it can.
        let accepted = accepted.load(Ordering::SeqCst);
        assert!((CALLS..=3 * CALLS).contains(&accepted), "{accepted}");
    });
}

#[test]
fn an_outage_opens_the_breaker_and_a_probe_closes_it() {
    runtime::block_on(2, async {
        // A listener that never accepts: only the deadline ends a call.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client(silent.local_addr().unwrap());
        while !client.is_breaker_open() {
            let error = create(&client, "", TraceContext::root()).await.unwrap_err();
            assert_eq!(error.kind(), FailureKind::Unavailable);
        }
        let started = Instant::now();
        assert!(matches!(create(&client, "", TraceContext::root()).await, Err(CallError::BreakerOpen)));
        assert!(started.elapsed() < DEADLINE / 2);

        let settings = ServerSettings {
            address: silent.local_addr().unwrap(),
            drain: Duration::from_secs(5),
            tls: None,
            max_connection_age: None,
        };
        drop(silent);
        let (server, shutdown) = (Server::bind(&settings).unwrap(), Shutdown::new());
        let health = Health::not_serving("BillingService").await;
        let routes = Routes::new(BillingServiceServer::new(Scripted::default()));
        let serving = runtime::spawn(server.serve(routes, health, DESCRIPTORS, shutdown.clone()));
        let healed = runtime::timeout(Duration::from_secs(20), async {
            while create(&client, "", TraceContext::root()).await.is_err() {
                smol::Timer::after(Duration::from_millis(50)).await;
            }
        });
        healed.await.expect("a probe finds the peer");
        assert!(!client.is_breaker_open());
        shutdown.trigger();
        serving.await.unwrap();
    });
}

#[test]
fn health_is_served_for_the_server_and_for_the_service() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

    with_server(|client, _| async move {
        for (service, expected) in [
            ("", Ok(ServingStatus::Serving)),
            ("BillingService", Ok(ServingStatus::Serving)),
            ("Other", Err(Code::NotFound)),
        ] {
            let check = |attempt: grpc::Attempt| async move {
                let request = attempt.request(HealthCheckRequest { service: service.to_owned() });
                Ok(HealthClient::new(attempt.channel()).check(request).await?.into_inner().status())
            };
            let status = client.call("Check", TraceContext::root(), check).await.map_err(|error| error.code().unwrap());
            assert_eq!(status, expected, "{service:?}");
        }
    });
}

#[test]
fn reflection_describes_the_service_in_both_versions() {
    with_server(|client, _| async move {
        let v1 = |attempt: grpc::Attempt| async move {
            use tonic_reflection::pb::v1::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let first = ServerReflectionRequest {
                host: String::new(),
                message_request: Some(MessageRequest::FileContainingSymbol("BillingService".to_owned())),
            };
            let health = MessageRequest::FileContainingSymbol("grpc.health.v1.Health".to_owned());
            let health = ServerReflectionRequest { host: String::new(), message_request: Some(health) };
            // As grpcurl does it: the second request depends on the first response, in one stream.
            let (requests, receiver) = smol::channel::bounded(2);
            requests.try_send(first).unwrap();
            let request = attempt.request(receiver);
            let mut answers =
                ServerReflectionClient::new(attempt.channel()).server_reflection_info(request).await?.into_inner();
            let mut files = Vec::new();
            for next in [Some(health), None] {
                match answers.next().await.unwrap()?.message_response.unwrap() {
                    MessageResponse::FileDescriptorResponse(answer) => {
                        files.extend(answer.file_descriptor_proto.concat())
                    }
                    other => panic!("{other:?}"),
                }
                if let Some(next) = next {
                    requests.try_send(next).unwrap();
                }
            }
            Ok(files)
        };
        let file = client.call("ServerReflectionInfo", TraceContext::root(), v1).await.unwrap();
        assert!(file.windows(20).any(|bytes| bytes == b"CreateBillingAccount"));
        assert!(file.windows(18).any(|bytes| bytes == b"HealthCheckRequest"));

        let v1alpha = |attempt: grpc::Attempt| async move {
            use tonic_reflection::pb::v1alpha::{
                ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
                server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
            };
            let message_request = Some(MessageRequest::ListServices(String::new()));
            let request =
                attempt.request(stream::once(ServerReflectionRequest { host: String::new(), message_request }));
            let mut answers =
                ServerReflectionClient::new(attempt.channel()).server_reflection_info(request).await?.into_inner();
            match answers.next().await.unwrap()?.message_response.unwrap() {
                MessageResponse::ListServicesResponse(list) => Ok(list.service.into_iter().map(|s| s.name).collect()),
                other => panic!("{other:?}"),
            }
        };
        let services: Vec<String> = client.call("ServerReflectionInfo", TraceContext::root(), v1alpha).await.unwrap();
        for service in ["BillingService", "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"] {
            assert!(services.contains(&service.to_owned()), "{service} is not among {services:?}");
        }
    });
}
