//! What a check of a password takes is given back or reused, on the real binary.

use std::fs;

use serde_json::json;
use smol::{future::poll_once, io::AsyncWriteExt as _, net::TcpStream};
use surf::http::Method;
use testbed::{
    Scratch,
    http::Client,
    service::{Launch, Service},
    until,
};

const LOGINS: usize = 64;
/// What Compose gives the service, in bytes.
const LIMIT: u64 = 64 << 20;

/// Runs a test on the service's binary, which then must not have taken more than it may.
fn with_binary(test: impl AsyncFnOnce(&Service)) {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let users = scratch.path().join("users.json");
        fs::write(&users, json!({"users": []}).to_string()).unwrap();
        let settings = [
            ("USERS_FILE", users.display().to_string()),
            ("SIGNING_KEY_FILE", scratch.path().join("key.pk8").display().to_string()),
            // Each login is that of another client.
            ("HTTP_TRUSTED_PROXIES", "127.0.0.1".to_owned()),
        ];
        let launch = Launch::new("auth-service", scratch.path(), settings);
        let mut service = launch.start_guarded(&scratch).unwrap();
        service.until_ready().await.unwrap();
        test(&service).await;
        let most = service.process().peak_memory();
        assert!(most < LIMIT, "{} KiB", most / 1024);
    });
}

/// The status of a login for an account of its own, from an address of its own.
async fn login(client: Client, n: usize) -> u16 {
    let body = json!({"email": format!("{n}@example.org"), "password": "x"});
    let address = format!("192.0.2.{n}");
    let headers = [("x-forwarded-for", address.as_str())];
    client.send(Method::Post, "/auth/login", &headers, Some(&body)).await.unwrap().status
}

#[test]
fn many_logins_at_once_cost_bounded_memory() {
    with_binary(async |service| {
        let mut checked = 0;
        while checked < LOGINS {
            let logins: Vec<_> = (checked..checked + 8).map(|n| runtime::spawn(login(service.client(), n))).collect();
            for login in logins {
                // A slow machine may not check all of them in time.
                let status = login.await;
                assert!([401, 503].contains(&status), "{status}");
                checked += 1;
            }
        }
    });
}

#[test]
fn logins_whose_clients_disconnect_cost_bounded_memory() {
    with_binary(async |service| {
        let (address, client) = (service.address(), service.client());
        for n in 0..LOGINS {
            let body = json!({"email": format!("{n}@example.org"), "password": "x"}).to_string();
            let head = format!(
                "POST /auth/login HTTP/1.1\r\nHost: {address}\r\nX-Forwarded-For: 192.0.2.{n}\r\n\
                 Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                body.len()
            );
            let mut connection = TcpStream::connect(&address).await.unwrap();
            connection.write_all((head + &body).as_bytes()).await.unwrap();
            until("the login is being checked, or was", async || {
                let metrics = client.get("/metrics").await.unwrap();
                metrics.metric("http_requests_in_flight") != Some(0.0)
                    || poll_once(connection.peek(&mut [0])).await.is_some()
            })
            .await;
            drop(connection);
        }
        until("who stays is answered", async || login(client.clone(), LOGINS).await == 401).await;
    });
}
