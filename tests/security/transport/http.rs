//! HTTP over TLS.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use testbed::{
    output,
    service::{Service, binaries},
    until,
};

use super::pki::{Pki, alone, connector, curl, get, health_check, http_tls, run, text};

const LIVENESS: &str = "/actuator/health/liveness";

/// patient-service over TLS, with the certificate `server` for localhost.
async fn service(pki: &Pki) -> Service {
    let identity = pki.issue("server", &["localhost", "127.0.0.1"]);
    let service = pki.start("patient-service", &[alone(), http_tls(&identity).to_vec()].concat());
    let client = connector(&pki.ca());
    until("the service serves", async || get(&client, "localhost", service.launch().port, LIVENESS).await.is_ok())
        .await;
    service
}

/// The value of a metric of the service; `name` includes the labels.
async fn metric(pki: &Pki, service: &Service, name: &str) -> Option<f64> {
    let text = get(&connector(&pki.ca()), "localhost", service.launch().port, "/metrics").await.ok()?;
    testbed::http::metric(&text, name)
}

#[test]
fn clients_of_others_speak_http_over_tls_and_its_own_health_check_does() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let service = service(&pki).await;
        let (ca, port) = (pki.ca().display().to_string(), service.launch().port);
        let url = format!("https://localhost:{port}{LIVENESS}");
        for versions in [&["--tlsv1.3"][..], &["--tlsv1.2", "--tls-max", "1.2"]] {
            let options = ["--cacert", &ca, "--write-out", "%{http_code} %{http_version}", &url];
            let arguments = [versions, &options].concat();
            let answer = text(&curl(&arguments).await);
            assert!(answer.ends_with("200 1.1"), "{versions:?}: {answer}");
        }
        // Two requests on one connection, the second with a body.
        let second = format!("https://localhost:{port}/patients");
        let body = ["--json", "{}", "--write-out", "%{http_code} %{num_connects} "];
        let answer = text(&curl(&[&["--cacert", &ca][..], &body, &[&url, &second]].concat()).await);
        assert!(answer.contains("400 0 ") || answer.contains("400 1 "), "{answer}");
        let (code, answer) = health_check(&service).await;
        assert!(code == Some(1) && answer.contains("DOWN"), "its database is unreachable, and it says so: {answer}");
    });
}

#[test]
fn a_tls_port_refuses_plaintext_and_a_client_a_foreign_authority_or_name() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let service = service(&pki).await;
        let port = service.launch().port;
        let mut plain = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        plain.write_all(b"GET /actuator/health/liveness HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // The end may be a reset.
        let _ = plain.read_to_end(&mut answer).await;
        assert!(!answer.windows(4).any(|bytes| bytes == b"HTTP"), "{answer:?}");
        // An alert, by which the client knows what the port speaks.
        assert_eq!(answer.first(), Some(&0x15), "{answer:?}");

        let url = format!("https://127.0.0.1:{port}{LIVENESS}");
        let answer = curl(&[&url]).await;
        assert_eq!(answer.status.code(), Some(60), "the authority is unknown: {}", text(&answer));
        let ca = pki.ca().display().to_string();
        let connect = format!("example.org:443:127.0.0.1:{port}");
        let answer = curl(&["--cacert", &ca, "--connect-to", &connect, "https://example.org/"]).await;
        assert_eq!(answer.status.code(), Some(60), "the name is another: {}", text(&answer));
    });
}

#[test]
fn tls_1_1_is_refused_and_later_versions_have_forward_secrecy() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let service = service(&pki).await;
        let address = format!("127.0.0.1:{}", service.launch().port);
        let connect = async |version: &str, ciphers: &str| {
            let arguments = ["s_client", "-connect", &address, version, "-cipher", ciphers, "-brief"];
            run("openssl", &arguments).await
        };
        for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
            let output = text(&connect(version, "DEFAULT").await);
            assert!(output.contains(&format!("Protocol version: {name}")), "{output}");
        }
        // Security level 0, so that the client itself allows it.
        for version in ["-tls1_1", "-tls1"] {
            let output = connect(version, "DEFAULT@SECLEVEL=0").await;
            let text = text(&output);
            assert!(!output.status.success() && text.contains("alert"), "{version}: {text}");
        }
        let output = connect("-tls1_2", "kRSA:@SECLEVEL=0").await;
        assert!(!output.status.success(), "without forward secrecy: {}", text(&output));
    });
}

#[test]
fn no_request_fails_while_certificates_are_replaced() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let service = service(&pki).await;
        let (port, stop) = (service.launch().port, Arc::new(AtomicBool::new(false)));
        let answered = Arc::new(AtomicUsize::new(0));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let (client, stop, answered) = (connector(&pki.ca()), stop.clone(), answered.clone());
                runtime::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        // The name that every certificate has.
                        let answer = get(&client, "127.0.0.1", port, LIVENESS).await;
                        let answer = answer.unwrap_or_else(|error| panic!("{error}"));
                        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        for round in 1..=2 {
            let name = format!("round-{round}.example");
            pki.issue("server", &[&name, "127.0.0.1", "localhost"]);
            let client = connector(&pki.ca());
            until(&name, async || get(&client, &name, port, LIVENESS).await.is_ok()).await;
            let reloaded = metric(&pki, &service, "tls_reloads_total{endpoint=\"http\",outcome=\"reloaded\"}").await;
            assert_eq!(reloaded, Some(f64::from(round)));
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await;
        }
        println!("{} requests", answered.load(Ordering::Relaxed));
        assert!(answered.load(Ordering::Relaxed) > 100);
    });
}

#[test]
fn files_that_are_not_valid_leave_the_old_certificate_and_are_counted() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let service = service(&pki).await;
        let (port, client) = (service.launch().port, connector(&pki.ca()));
        let rejected = "tls_reloads_total{endpoint=\"http\",outcome=\"rejected\"}";
        assert_eq!(metric(&pki, &service, rejected).await, Some(0.0));
        std::fs::write(pki.path().join("server.crt"), "-----BEGIN CERTIFICATE-----\nhalf a certif").unwrap();
        until("the file is rejected", async || metric(&pki, &service, rejected).await == Some(1.0)).await;
        get(&client, "localhost", port, LIVENESS).await.unwrap();
        let warned = |line: &&str| line.contains("the old ones stay in use") && line.contains("server.crt");
        assert_eq!(service.log().lines().filter(warned).count(), 1, "{}", service.log());
        // A key of another certificate.
        let other = pki.issue("other", &["localhost"]);
        std::fs::copy(other.certificate, pki.path().join("server.crt")).unwrap();
        until("the pair is rejected", async || metric(&pki, &service, rejected).await == Some(2.0)).await;
        get(&client, "127.0.0.1", port, LIVENESS).await.unwrap();
    });
}

#[test]
fn settings_that_do_not_protect_end_a_service_with_exit_code_78() {
    let pki = Pki::new();
    let identity = pki.issue("server", &["localhost"]);
    let (certificate, key) = (identity.certificate.display().to_string(), identity.key.display().to_string());
    let kafka = |protocol: &'static str, mechanism: &'static str| {
        vec![
            ("KAFKA_SECURITY_PROTOCOL", protocol.to_owned()),
            ("KAFKA_SASL_MECHANISM", mechanism.to_owned()),
            ("KAFKA_SASL_USERNAME", "jane".to_owned()),
            ("KAFKA_SASL_PASSWORD", "hunter2".to_owned()),
        ]
    };
    let users = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/auth/users.json");
    let login = vec![
        ("TOKEN_ISSUER", "https://auth.example".to_owned()),
        ("USERS_FILE", users.to_owned()),
        ("SIGNING_KEY_FILE", pki.scratch.path().join("signing-key.pk8").display().to_string()),
        ("SERVER_TLS_CERTIFICATE", certificate.clone()),
        ("SERVER_TLS_KEY", format!("{key}.none")),
    ];
    let cases = [
        ("patient-service", kafka("SASL_PLAINTEXT", "PLAIN"), "KAFKA_SASL_MECHANISM: expected SCRAM-SHA-256"),
        ("analytics-service", kafka("SASL_PLAINTEXT", "PLAIN"), "PLAIN sends the password"),
        (
            "analytics-service",
            kafka("PLAINTEXT", "SCRAM-SHA-256"),
            "KAFKA_SASL_MECHANISM: expected nothing without SASL",
        ),
        ("patient-service", vec![("SERVER_TLS_CERTIFICATE", certificate.clone())], "SERVER_TLS_KEY"),
        ("patient-service", vec![("BILLING_TLS_CA", certificate.clone())], "BILLING_SERVICE_ADDRESS is not https"),
        ("billing-service", vec![("GRPC_CLIENT_SANS", "patient-service".to_owned())], "GRPC_SERVER_TLS_CLIENT_CA"),
        (
            "billing-service",
            vec![("GRPC_SERVER_TLS_CERTIFICATE", certificate), ("GRPC_SERVER_TLS_KEY", format!("{key}.none"))],
            "server.key.none cannot be read",
        ),
        ("auth-service", login, "server.key.none cannot be read"),
    ];
    for (service, settings, message) in cases {
        let mut command = Command::new(binaries().unwrap().join(service));
        command.env_clear().envs(alone()).envs([("SERVER_PORT", "0"), ("GRPC_SERVER_PORT", "0")]).envs(settings);
        let output = output(&mut command).unwrap();
        let text = text(&output);
        assert_eq!(output.status.code(), Some(78), "{service}: {text}");
        assert!(text.contains(message) && !text.contains("hunter2"), "{service}: {text}");
    }
}

/// The memory limit of a service in docker-compose.yaml.
const ALL_MEMORY: u64 = 64 << 20;

/// Each connection holds most of the largest handshake message that rustls takes.
#[test]
fn handshakes_that_do_not_end_cost_bounded_memory_and_block_no_other_client() {
    runtime::block_on(2, async {
        let pki = Pki::new();
        let mut service = service(&pki).await;
        let port = service.launch().port;
        let hello = [&[1, 0, 0xff, 0xfb][..], &[0; 64_000]].concat();
        let records: Vec<u8> =
            hello.chunks(16_000).flat_map(|part| [&[22, 3, 1, 62, 128][..], part].concat()).take(64_000).collect();
        let mut held = Vec::new();
        for _ in 0..1_800 {
            let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { continue };
            // The server may have closed it for others.
            let _ = stream.write_all(&records).await;
            held.push(stream);
            // So that not all of them are open at once.
            if held.len() == 900 {
                assert!(get(&connector(&pki.ca()), "localhost", port, LIVENESS).await.unwrap().contains("200 OK"));
                held.clear();
            }
        }
        let most = service.process().peak_memory();
        assert!(most < ALL_MEMORY, "{} KiB", most >> 10);
    });
}
