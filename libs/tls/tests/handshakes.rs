//! Handshakes between this library's servers and clients.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::{io, path::Path, time::Duration};

use smol::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use testbed::{
    Scratch,
    certificates::{Authority, Identity, Validity},
};
use tls::{Acceptor, ClientAuth, ClientSettings, Connector, ServerSettings};

struct Files {
    scratch: Scratch,
    authority: Authority,
    server: Identity,
}

impl Files {
    fn new() -> Self {
        let scratch = Scratch::new().unwrap();
        let authority = Authority::new("tests").unwrap();
        authority.write(&scratch.path().join("ca.pem")).unwrap();
        let server = authority.issue(scratch.path(), "server", &["localhost", "127.0.0.1"], Validity::Now).unwrap();
        Self { scratch, authority, server }
    }

    fn path(&self) -> &Path {
        self.scratch.path()
    }

    fn server(&self, clients: Option<ClientAuth>) -> ServerSettings {
        let Identity { certificate, key } = self.server.clone();
        ServerSettings { certificate, key, clients: clients.map(|auth| (self.path().join("ca.pem"), auth)) }
    }

    fn client(&self, identity: Option<Identity>) -> ClientSettings {
        let identity = identity.map(|Identity { certificate, key }| (certificate, key));
        ClientSettings { ca: Some(self.path().join("ca.pem")), identity }
    }
}

/// The names that the server sees of the client, and whether the client could read its answer.
fn connect(server: ServerSettings, client: ClientSettings, name: &str) -> (io::Result<Vec<String>>, io::Result<()>) {
    smol::block_on(async {
        let acceptor = Acceptor::new("test", server, &["test"]).unwrap();
        let connector = Connector::new("test", client, &["test"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (stream, _) = listener.accept().await?;
            let mut stream = acceptor.accept(stream).await?;
            stream.write_all(b"!").await?;
            stream.flush().await?;
            Ok(stream.peer_names())
        };
        let ask = async {
            let mut stream = connector.connect(name, TcpStream::connect(address).await?).await?;
            stream.read_exact(&mut [0]).await
        };
        smol::future::zip(serve, ask).await
    })
}

#[test]
fn a_server_is_known_by_its_name_or_address_and_its_authority() {
    let files = Files::new();
    for name in ["localhost", "127.0.0.1", "localhost."] {
        let (served, asked) = connect(files.server(None), files.client(None), name);
        assert_eq!((served.unwrap(), asked.unwrap()), (Vec::new(), ()), "{name}");
    }
    for name in ["example.org", "127.0.0.2"] {
        let (_, asked) = connect(files.server(None), files.client(None), name);
        let error = asked.unwrap_err().to_string();
        assert!(error.contains("not valid for name"), "{name}: {error}");
    }
    for ca in [
        None,
        Some({
            let other = files.path().join("other.pem");
            Authority::new("other").unwrap().write(&other).unwrap();
            other
        }),
    ] {
        let (served, asked) = connect(files.server(None), ClientSettings { ca, identity: None }, "localhost");
        let error = asked.unwrap_err().to_string();
        assert!(error.contains("UnknownIssuer") && served.is_err(), "{error}");
    }
}

#[test]
fn a_client_is_known_by_the_names_of_its_certificate() {
    let files = Files::new();
    let names = ["patient-service", "spiffe://example.org/patient-service"];
    let client = files.authority.issue(files.path(), "client", &names, Validity::Now).unwrap();
    for auth in [ClientAuth::Optional, ClientAuth::Required] {
        let (served, asked) = connect(files.server(Some(auth)), files.client(Some(client.clone())), "localhost");
        assert_eq!(served.unwrap(), names, "{auth:?}");
        asked.unwrap();
    }
    let (served, asked) = connect(files.server(Some(ClientAuth::Optional)), files.client(None), "localhost");
    assert_eq!((served.unwrap(), asked.unwrap()), (Vec::new(), ()));

    let expired = files.authority.issue(files.path(), "expired", &names, Validity::Expired).unwrap();
    let foreign = Authority::new("foreign").unwrap().issue(files.path(), "foreign", &names, Validity::Now).unwrap();
    for (client, why) in [(None, "no certificates"), (Some(expired), "expired"), (Some(foreign), "UnknownIssuer")] {
        let (served, asked) = connect(files.server(Some(ClientAuth::Required)), files.client(client), "localhost");
        let error = served.unwrap_err().to_string();
        assert!(error.contains(why) && asked.is_err(), "{why}: {error}");
    }
}

#[test]
fn a_client_that_does_not_speak_tls_is_refused_and_a_silent_one_after_five_seconds() {
    let files = Files::new();
    smol::block_on(async {
        let acceptor = Acceptor::new("test", files.server(None), &["http/1.1"]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut plain = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
        let refused = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "{refused}");

        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let started = std::time::Instant::now();
        let refused = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::TimedOut, "{refused}");
        assert!(started.elapsed() >= Duration::from_secs(5));
    });
}

/// Each error names the file at fault.
#[test]
fn files_that_cannot_be_used_are_named() {
    let files = Files::new();
    let path = |name: &str| files.path().join(name);
    std::fs::write(path("empty.pem"), "").unwrap();
    std::fs::write(path("torn.pem"), "-----BEGIN CERTIFICATE-----\nMIIB").unwrap();
    std::fs::write(path("torn.key"), "-----BEGIN PRIVATE KEY-----\nsecret?\n-----END PRIVATE KEY-----\n").unwrap();
    let other = files.authority.issue(files.path(), "other", &["localhost"], Validity::Now).unwrap();
    let good = files.server(None);
    let with =
        |certificate: &str, key: &str| ServerSettings { certificate: path(certificate), key: path(key), clients: None };
    for (settings, file, why) in [
        (with("none.crt", "server.key"), "none.crt", "cannot be read"),
        (with("empty.pem", "server.key"), "empty.pem", "no certificate"),
        (with("torn.pem", "server.key"), "torn.pem", "does not end"),
        (with("server.crt", "empty.pem"), "empty.pem", "no private key"),
        (with("server.crt", "torn.key"), "torn.key", "base64"),
        (with("server.crt", "server.crt"), "server.crt", "no private key"),
        (ServerSettings { key: other.key, ..good.clone() }, "other.key", "does not fit"),
        (
            ServerSettings { clients: Some((path("empty.pem"), ClientAuth::Required)), ..good },
            "empty.pem",
            "no certificate",
        ),
    ] {
        let error = Acceptor::new("test", settings, &[]).unwrap_err().to_string();
        assert!(error.contains(file) && error.contains(why) && !error.contains("secret"), "{file}: {error}");
    }
}

/// The thread that polls finds new files by itself, and connections that are open stay.
#[test]
fn new_certificates_are_used_for_new_connections() {
    let files = Files::new();
    smol::block_on(async {
        let acceptor = Acceptor::new("reload", files.server(None), &[]).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        smol::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let acceptor = acceptor.clone();
                smol::spawn(async move {
                    if let Ok(mut stream) = acceptor.accept(stream).await {
                        let mut byte = [0];
                        while stream.read_exact(&mut byte).await.is_ok() {
                            stream.write_all(&byte).await.unwrap();
                            stream.flush().await.unwrap();
                        }
                    }
                })
                .detach();
            }
        })
        .detach();
        let connector = Connector::new("reload", files.client(None), &[]).unwrap();
        let connect = async |name: &str| connector.connect(name, TcpStream::connect(address).await?).await;
        let mut open = connect("localhost").await.unwrap();
        assert!(connect("renewed.example").await.is_err());
        files.authority.issue(files.path(), "server", &["renewed.example"], Validity::Now).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while connect("renewed.example").await.is_err() {
            assert!(std::time::Instant::now() < deadline, "the new certificate is not used");
            smol::Timer::after(Duration::from_millis(100)).await;
        }
        assert!(connect("localhost").await.is_err(), "the old certificate is not used any more");
        open.write_all(b"x").await.unwrap();
        open.flush().await.unwrap();
        open.read_exact(&mut [0]).await.unwrap();
    });
}
