//! gRPC calls of people, with tokens of billing's audience.

use std::time::{Duration, Instant};

use billing_api::{BillingRequest, GetBillingAccountRequest, billing_service_client::BillingServiceClient};
use grpc::{Attempt, CallError, Client, ClientSettings, Code, Request};
use serde_json::json;
use telemetry::TraceContext;
use testbed::{
    http2::{Connection, DATA, END_HEADERS, HEADERS, head},
    tokens::{self, SigningKey, with},
};
use uuid::Uuid;

use crate::support::{Secured, TIMEOUT};

#[test]
fn each_method_requires_a_token_of_its_audience_with_its_scope() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let service = Secured::with_keys("billing-service", &tokens::jwk_set([&key])).await;
        let others = tokens::claims(crate::support::ISSUER, "patient-service", "ann", "billing:read billing:write");
        let forged = SigningKey::es256("key").token(&service.claims("ann", "billing:read billing:write"));
        let token = |scopes: &str| Some(key.token(&service.claims("ann", scopes)));
        // What the account of nobody answers, and what is opened.
        for (what, token, read, open) in [
            ("no token", None, Code::Unauthenticated, Code::Unauthenticated),
            ("forged", Some(forged), Code::Unauthenticated, Code::Unauthenticated),
            ("other audience", Some(key.token(&others)), Code::Unauthenticated, Code::Unauthenticated),
            ("no scope", token("patients:read"), Code::PermissionDenied, Code::PermissionDenied),
            ("read", token("billing:read"), Code::NotFound, Code::PermissionDenied),
            ("write", token("billing:write"), Code::PermissionDenied, Code::Ok),
        ] {
            let (get, create) = call(&service, token).await;
            assert_eq!((get, create), (read, open), "{what}");
        }
    });
}

#[test]
fn a_stream_of_messages_ends_with_the_token() {
    runtime::block_on(2, async {
        let key = SigningKey::es256("key");
        let service = Secured::with_keys("billing-service", &tokens::jwk_set([&key])).await;
        let claims = with(service.claims("ann", "billing:read"), &json!({"exp": tokens::now() + 6}));
        let authorization = format!("Bearer {}", key.token(&claims));
        let started = Instant::now();
        let mut connection = Connection::open_with_window(service.grpc, 1 << 16).await.unwrap();
        let path = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
        connection.frame(HEADERS, END_HEADERS, 1, &head(path, &[("authorization", &authorization)])).await.unwrap();
        // Asks for the list of services. The client's side of the stream stays open, so the response goes on.
        connection.frame(DATA, 0, 1, &[0, 0, 0, 0, 2, 0x3a, 0]).await.unwrap();
        let mut messages = 0;
        let end = loop {
            let frame = connection.receive(TIMEOUT).await.unwrap().expect("the connection is open");
            if frame.stream == 1 && frame.is_end() {
                break frame;
            }
            messages += usize::from(frame.stream == 1 && frame.kind == DATA);
        };
        assert_eq!((messages, end.grpc_status()), (1, Some(Code::Unauthenticated as u8)));
        let lasted = started.elapsed();
        assert!(lasted >= Duration::from_millis(1500) && lasted < Duration::from_secs(20), "{lasted:?}");
    });
}

async fn call(service: &Secured, token: Option<String>) -> (Code, Code) {
    let address = config::HostPort { host: service.grpc.ip().to_string(), port: service.grpc.port() };
    let deadline = Duration::from_secs(10);
    let settings = ClientSettings { peer: "test", service: "BillingService", address, deadline, tls: None };
    let client = Client::new(settings).unwrap();
    let patient_id = Uuid::now_v7().to_string();
    let (token, id) = (token.as_deref(), patient_id.as_str());
    let get = |attempt: Attempt| async move {
        let request = attempt.request(GetBillingAccountRequest { patient_id: id.to_owned() });
        BillingServiceClient::new(attempt.channel()).get_billing_account(identified(request, token)).await.map(drop)
    };
    let create = |attempt: Attempt| async move {
        let (name, email) = ("Ann".to_owned(), "ann@example.org".to_owned());
        let request = attempt.request(BillingRequest { patient_id: id.to_owned(), name, email });
        BillingServiceClient::new(attempt.channel()).create_billing_account(identified(request, token)).await.map(drop)
    };
    let code = |outcome: Result<(), CallError>| outcome.map_or_else(|error| error.code().unwrap(), |()| Code::Ok);
    let get = client.call("GetBillingAccount", TraceContext::root(), get).await;
    (code(get), code(client.call("CreateBillingAccount", TraceContext::root(), create).await))
}

/// With what a caller might say about whom it acts for, which grants nothing (`transport/services.rs` looks at it by itself).
fn identified<T>(mut request: Request<T>, token: Option<&str>) -> Request<T> {
    for name in ["actor", "x-actor", "x-forwarded-user"] {
        request.metadata_mut().insert(name, "patient-service".parse().unwrap());
    }
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    request
}
