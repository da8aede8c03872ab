//! gRPC between the services, with certificates both ways.

use std::time::Duration;

use billing_api::{BillingRequest, billing_service_client::BillingServiceClient};
use config::HostPort;
use grpc::{Attempt, CallError, Client, ClientSettings, ClientTls, Code};
use telemetry::TraceContext;
use testbed::{
    certificates::{Authority, Identity, Validity},
    ports,
    service::Service,
    tokens::SigningKey,
    until,
};

use super::pki::{Pki, UNREACHABLE, run, text, until_ready};

const DEADLINE: Duration = Duration::from_secs(30);

/// billing-service with a database, and gRPC over TLS for clients with the name `patient-service`.
async fn billing(pki: &Pki, extra: &[(&str, String)]) -> (Service, u16) {
    let server = pki.issue("billing", &["billing.example"]);
    let port = ports::free();
    let settings = [
        ("DATABASE_URL", testbed::shared_database().await),
        ("GRPC_SERVER_PORT", port.to_string()),
        ("GRPC_SERVER_TLS_CERTIFICATE", server.certificate.display().to_string()),
        ("GRPC_SERVER_TLS_KEY", server.key.display().to_string()),
        ("GRPC_SERVER_TLS_CLIENT_CA", pki.ca().display().to_string()),
        ("GRPC_CLIENT_SANS", "patient-service, spiffe://example.org/patients".to_owned()),
    ];
    let service = pki.start("billing-service", &[&settings, extra].concat());
    until_ready(&service).await;
    (service, port)
}

fn client(pki: &Pki, port: u16, identity: Option<Identity>, name: Option<&str>) -> Client {
    let identity = identity.map(|Identity { certificate, key }| (certificate, key));
    let files = tls::ClientSettings { ca: Some(pki.ca()), identity };
    let address = HostPort { host: "127.0.0.1".to_owned(), port };
    let tls = Some(ClientTls { files, server_name: name.map(str::to_owned) });
    Client::new(ClientSettings { peer: "billing-service", service: "BillingService", address, deadline: DEADLINE, tls })
        .unwrap()
}

async fn open_account(client: &Client) -> Result<(), CallError> {
    open_account_saying(client, &[]).await
}

/// With headers.
async fn open_account_saying(client: &Client, headers: &[(&'static str, &'static str)]) -> Result<(), CallError> {
    let make = |attempt: Attempt| async move {
        let id = format!("{:032x}", fastrand::u128(..));
        let request = BillingRequest { patient_id: id, name: "Jane".to_owned(), email: "jane@example.org".to_owned() };
        let mut request = attempt.request(request);
        for (name, value) in headers {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        BillingServiceClient::new(attempt.channel()).create_billing_account(request).await.map(drop)
    };
    client.call("CreateBillingAccount", TraceContext::root(), make).await
}

#[test]
fn a_call_needs_a_certificate_of_the_authority_with_a_name_that_may_call() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let (service, port) = billing(&pki, &[]).await;
        let name = Some("billing.example");
        for names in [&["patient-service"][..], &["PATIENT-SERVICE"], &["x", "spiffe://example.org/patients"]] {
            let identity = pki.issue("good", names);
            open_account(&client(&pki, port, Some(identity), name))
                .await
                .unwrap_or_else(|error| panic!("{names:?}: {error}"));
        }
        for names in
            [&["analytics-service"][..], &["patient-service.example"], &["spiffe://example.org/patients/x"], &[]]
        {
            let identity = pki.issue("wrong", names);
            let error = open_account(&client(&pki, port, Some(identity), name)).await.unwrap_err();
            assert_eq!(error.code(), Some(Code::PermissionDenied), "{names:?}: {error}");
        }
        let expired = pki.authority.issue(pki.path(), "expired", &["patient-service"], Validity::Expired).unwrap();
        let foreign = Authority::new("tests").unwrap();
        let foreign = foreign.issue(pki.path(), "foreign", &["patient-service"], Validity::Now).unwrap();
        for (what, identity) in [("none", None), ("expired", Some(expired)), ("foreign", Some(foreign))] {
            let error = open_account(&client(&pki, port, identity, name)).await.unwrap_err();
            assert!(matches!(error, CallError::Unreachable(_)), "{what}: {error}");
        }
        let metrics = service.client().get("/metrics").await.unwrap().text();
        let refused =
            |line: &str| line.starts_with("grpc_server_calls_total") && line.contains("\"permission_denied\"");
        assert!(metrics.lines().any(refused), "{metrics}");
    });
}

/// Python's grpcio, whose TLS is BoringSSL.
#[test]
fn grpcio_calls_with_a_certificate_that_may_call_and_with_no_other() {
    runtime::block_on(2, async {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let packages = run(&format!("{root}/tests/wire/packages"), &[]).await;
        if packages.status.code() == Some(77) {
            println!("SKIPPED: {}", text(&packages));
            return;
        }
        assert!(packages.status.success(), "{}", text(&packages));
        let packages = String::from_utf8(packages.stdout).unwrap();
        let path = format!("PYTHONPATH={}", packages.trim());
        let pki = Pki::new();
        let (_service, port) = billing(&pki, &[]).await;
        let (address, ca) = (format!("127.0.0.1:{port}"), pki.ca().display().to_string());
        let (client, protos) = (format!("{root}/tests/wire/grpc_client.py"), format!("{root}/protos"));
        let call = async |identity: Option<Identity>, name: &str| {
            let files = identity.map(|Identity { certificate, key }| [certificate, key]);
            let files = files.iter().flatten().map(|file| file.to_str().unwrap());
            let python = [&path, "PYTHONDONTWRITEBYTECODE=1", "python3", &client, &protos, &address, name, &ca];
            let output = run("env", &python.into_iter().chain(files).collect::<Vec<_>>()).await;
            assert!(output.status.success(), "{}", text(&output));
            String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let all_are =
            |outcome: &[String], code: &str| outcome.len() == 3 && outcome.iter().all(|one| one.starts_with(code));
        let good = || Some(pki.issue("good", &["patient-service"]));
        let wrong = Some(pki.issue("wrong", &["analytics-service"]));
        for (what, identity, name, code) in [
            ("a certificate that may call", good(), "billing.example", "OK"),
            ("one that may not", wrong, "billing.example", "PERMISSION_DENIED"),
            ("none", None, "billing.example", "UNAVAILABLE"),
            ("another name of the server", good(), "other.example", "UNAVAILABLE"),
        ] {
            let outcome = call(identity, name).await;
            assert!(all_are(&outcome, code), "{what}: {outcome:?}");
        }
    });
}

#[test]
fn a_client_refuses_a_server_with_another_name_and_plaintext_is_refused() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let (_service, port) = billing(&pki, &[]).await;
        let identity = pki.issue("good", &["patient-service"]);
        for (name, shown) in [(Some("other.example"), "other.example"), (None, "127.0.0.1")] {
            let error = open_account(&client(&pki, port, Some(identity.clone()), name)).await.unwrap_err().to_string();
            assert!(error.contains("not valid for name") && error.contains(shown), "{error}");
        }
        let address = HostPort { host: "127.0.0.1".to_owned(), port };
        let settings = ClientSettings {
            peer: "billing-service",
            service: "BillingService",
            address,
            deadline: DEADLINE,
            tls: None,
        };
        let error = open_account(&Client::new(settings).unwrap()).await.unwrap_err();
        assert!(matches!(error, CallError::Unreachable(_)), "{error}");

        let address = format!("127.0.0.1:{port}");
        let (ca, certificate, key) = (pki.ca(), identity.certificate, identity.key);
        let files = [&ca, &certificate, &key].map(|file| file.to_str().unwrap());
        let arguments =
            ["s_client", "-connect", &address, "-CAfile", files[0], "-cert", files[1], "-key", files[2], "-alpn", "h2"];
        let output = text(&run("openssl", &arguments).await);
        assert!(output.contains("ALPN protocol: h2") && output.contains("Verify return code: 0 (ok)"), "{output}");
    });
}

#[test]
fn patient_service_says_why_it_does_not_trust_billing() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let (_service, port) = billing(&pki, &[]).await;
        let identity = pki.issue("patient", &["patient-service"]);
        let settings = |name: &str| {
            [
                ("KAFKA_BOOTSTRAP_SERVERS", UNREACHABLE.to_owned()),
                ("BILLING_SERVICE_ADDRESS", format!("https://127.0.0.1:{port}")),
                ("BILLING_TLS_CA", pki.ca().display().to_string()),
                ("BILLING_TLS_CERTIFICATE", identity.certificate.display().to_string()),
                ("BILLING_TLS_KEY", identity.key.display().to_string()),
                ("BILLING_TLS_SERVER_NAME", name.to_owned()),
                ("BILLING_DEADLINE", "20s".to_owned()),
            ]
        };
        for (name, status) in [("billing.example", "ACTIVE"), ("other.example", "PENDING")] {
            let database = ("DATABASE_URL", testbed::shared_database().await);
            let service = pki.start("patient-service", &[&[database][..], &settings(name)].concat());
            until_ready(&service).await;
            let answer = service.client().post("/patients", &testbed::patient::unique_body("Jane Doe")).await.unwrap();
            assert_eq!(answer.status, 201, "{}", answer.text());
            assert!(answer.text().contains(status), "{name}: {}", answer.text());
            if status == "PENDING" {
                until("the log says why", async || service.log().contains("not valid for name")).await;
            }
        }
    });
}

#[test]
fn where_people_need_tokens_a_service_is_known_by_its_certificate() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let jwt = pki.jwt(&SigningKey::es256("key"), "billing-service");
        let identity = pki.issue("good", &["patient-service"]);
        let (_service, port) = billing(&pki, &jwt).await;
        open_account(&client(&pki, port, Some(identity.clone()), Some("billing.example"))).await.unwrap();
        // A certificate alone, without a name that the service lists, does not make its owner a service.
        let (_service, port) = billing(&pki, &[&jwt[..], &[("GRPC_CLIENT_SANS", String::new())]].concat()).await;
        let error = open_account(&client(&pki, port, Some(identity), Some("billing.example"))).await.unwrap_err();
        assert_eq!(error.code(), Some(Code::Unauthenticated), "{error}");
    });
}

/// 29: what a caller says in headers about who it is, or for whom it acts, grants nothing: with a certificate that does not make
/// its owner a service each of them gets what none gets. A service may say for whom it acts; nothing reads it yet.
#[test]
fn no_header_makes_a_caller_a_service() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let jwt = pki.jwt(&SigningKey::es256("key"), "billing-service");
        // Of Envoy, nginx and others that end TLS before a service, and what one might choose for a person.
        let headers = [
            ("x-forwarded-client-cert", "Hash=00;DNS=patient-service;URI=spiffe://example.org/patients"),
            ("x-ssl-client-s-dn", "CN=patient-service"),
            ("x-client-san", "patient-service"),
            ("service-identity", "patient-service"),
            ("x-forwarded-user", "patient-service"),
            ("x-actor", "patient-service"),
            ("actor", "patient-service"),
        ];
        let good = pki.issue("good", &["patient-service"]);
        // By each way in which a name does not count: it is not listed, or none is.
        for (names, sans, code) in [
            (&["analytics-service"][..], None, Code::PermissionDenied),
            (&["patient-service"], Some(String::new()), Code::Unauthenticated),
        ] {
            let sans: Vec<_> = sans.into_iter().map(|sans| ("GRPC_CLIENT_SANS", sans)).collect();
            let (_service, port) = billing(&pki, &[&jwt[..], &sans].concat()).await;
            let client = client(&pki, port, Some(pki.issue("caller", names)), Some("billing.example"));
            assert_eq!(open_account(&client).await.unwrap_err().code(), Some(code), "{names:?}");
            for header in headers {
                let error = open_account_saying(&client, &[header]).await.unwrap_err();
                assert_eq!(error.code(), Some(code), "{names:?} {header:?}: {error}");
            }
        }
        let (_service, port) = billing(&pki, &jwt).await;
        let service = client(&pki, port, Some(good), Some("billing.example"));
        open_account_saying(&service, &headers).await.unwrap();
    });
}

#[test]
fn an_old_connection_is_replaced_and_no_call_fails() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let (service, port) = billing(&pki, &[("GRPC_MAX_CONNECTION_AGE", "500ms".to_owned())]).await;
        let identity = pki.issue("good", &["patient-service"]);
        let client = client(&pki, port, Some(identity), Some("billing.example"));
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_secs(3) {
            open_account(&client).await.unwrap();
        }
        let metrics = service.client().get("/metrics").await.unwrap();
        let handshakes = metrics.metric("tls_handshakes_total{endpoint=\"grpc\",outcome=\"ok\"}").unwrap();
        assert!(handshakes >= 4.0, "{handshakes} connections");
    });
}
