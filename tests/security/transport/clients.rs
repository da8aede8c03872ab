//! What services fetch and send over HTTP: keys of the issuer, and exports for a collector.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use config::{Environment, Reader};
use runtime::Shutdown;
use serde_json::Value as Json;
use testbed::{
    certificates::Authority,
    http::Client,
    tokens::{self, SigningKey},
    until,
};
use tide::{Request, Response};
use web::{Problem, Router, Server};

use super::pki::{Pki, alone, http_tls};

const ISSUER: &str = "https://issuer.example";

/// An issuer and a collector in one server, over TLS.
#[derive(Clone)]
struct Peer {
    keys: Arc<Json>,
    exports: Arc<AtomicUsize>,
}

impl Peer {
    /// Returns its port.
    fn start(self, pki: &Pki) -> u16 {
        let tls = http_tls(&pki.issue("peer", &["localhost"]));
        let environment = tls
            .into_iter()
            .fold(Environment::empty().with("SERVER_PORT", "0"), |all, (name, value)| all.with(name, value));
        let server = Server::bind(&web::Settings::read(&mut Reader::new(environment), "0")).unwrap();
        let port = server.address().port();
        let app = Router::new(self).get("/keys", keys).post("/v1/:signal", receive).build();
        // It ends with the test's process.
        runtime::spawn(server.serve(app, Shutdown::new())).detach();
        port
    }
}

async fn keys(request: Request<Peer>) -> Result<Response, Problem> {
    Ok(web::text("application/json", request.state().keys.to_string()))
}

async fn receive(request: Request<Peer>) -> Result<Response, Problem> {
    request.state().exports.fetch_add(1, Ordering::SeqCst);
    Ok(Response::new(tide::StatusCode::Ok))
}

#[test]
fn keys_and_exports_pass_over_tls_to_a_server_of_the_authority_alone() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let key = SigningKey::es256("key");
        let peer = Peer { keys: Arc::new(tokens::jwk_set([&key])), exports: Arc::default() };
        let exports = peer.exports.clone();
        let port = peer.start(&pki);
        let token = format!("Bearer {}", key.token(&tokens::claims(ISSUER, "patient-service", "ann", "patients:read")));
        let foreign = pki.path().join("foreign.pem");
        Authority::new("foreign").unwrap().write(&foreign).unwrap();
        // A known caller gets as far as the database, which is unreachable.
        for (ca, host, known) in
            [(&pki.ca(), "localhost", true), (&foreign, "localhost", false), (&pki.ca(), "127.0.0.1", false)]
        {
            let base = format!("https://{host}:{port}");
            let ca = ca.display().to_string();
            let settings = [
                ("AUTH", "jwt".to_owned()),
                ("AUTH_ISSUER", ISSUER.to_owned()),
                ("AUTH_AUDIENCE", "patient-service".to_owned()),
                ("AUTH_JWKS_URL", format!("{base}/keys")),
                ("AUTH_JWKS_TLS_CA", ca.clone()),
                ("OTEL_EXPORTER_OTLP_ENDPOINT", base),
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca),
                ("OTEL_BSP_SCHEDULE_DELAY", "50".to_owned()),
            ];
            let mut service = pki.start("patient-service", &[alone(), settings.to_vec()].concat());
            let client = Client::new(service.address());
            let before = exports.load(Ordering::SeqCst);
            let answer = async || {
                let headers = [("authorization", token.as_str())];
                client.send(surf::http::Method::Get, "/patients", &headers, None).await.map(|answer| answer.text())
            };
            let expected = if known { "database" } else { "keys" };
            until(expected, async || answer().await.is_ok_and(|text| text.contains(expected))).await;
            if known {
                until("an export has arrived", async || exports.load(Ordering::SeqCst) > before).await;
            } else {
                let refused =
                    || service.log().lines().any(|line| line.contains("collector") && line.contains("ertificate"));
                until("the log says why nothing is exported", async || refused()).await;
                assert_eq!(exports.load(Ordering::SeqCst), before);
            }
            // Its exports must not be taken for those of the next one.
            service.stop().await;
        }
    });
}
