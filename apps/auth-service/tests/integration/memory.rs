//! What a check of a password takes is given back or reused, on the real binary.

use std::fs;

use serde_json::json;
use surf::http::Method;
use testbed::{Scratch, service::Launch};

const LOGINS: usize = 64;
/// What Compose gives the service, in bytes.
const LIMIT: u64 = 64 << 20;

#[test]
fn many_logins_at_once_cost_bounded_memory() {
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
        let mut checked = 0;
        while checked < LOGINS {
            let login = |n: usize| {
                let client = service.client();
                runtime::spawn(async move {
                    let body = json!({"email": format!("{n}@example.org"), "password": "x"});
                    let address = format!("192.0.2.{n}");
                    let headers = [("x-forwarded-for", address.as_str())];
                    client.send(Method::Post, "/auth/login", &headers, Some(&body)).await.unwrap().status
                })
            };
            let logins: Vec<_> = (checked..checked + 8).map(login).collect();
            for login in logins {
                // A slow machine may not check all of them in time.
                let status = login.await;
                assert!([401, 503].contains(&status), "{status}");
                checked += 1;
            }
        }
        let most = service.process().peak_memory();
        assert!(most < LIMIT, "{} KiB", most / 1024);
    });
}
