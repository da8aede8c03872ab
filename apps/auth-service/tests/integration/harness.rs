//! A service with one user.

use std::{fs, future::Future, net::SocketAddr};

use argon2::{Argon2, password_hash::PasswordHasher as _};
use auth_service::{Service, Settings};
use config::{Environment, Reader};
use runtime::Shutdown;
use serde_json::{Value as Json, json};
use surf::http::Method;
use testbed::{
    Scratch,
    http::{Client, Response},
};

pub(crate) const ISSUER: &str = "http://auth.example:4005";
pub(crate) const EMAIL: &str = "ann@example.org";
pub(crate) const PASSWORD: &str = "correct horse";

pub(crate) struct Harness {
    pub(crate) client: Client,
    pub(crate) address: SocketAddr,
}

/// Runs a test on a service with these settings besides its own.
pub(crate) fn with_service<F: Future<Output = ()>>(settings: &[(&'static str, &str)], test: impl FnOnce(Harness) -> F) {
    runtime::block_on(2, async {
        let scratch = Scratch::new().unwrap();
        let hash = Argon2::default().hash_password(PASSWORD.as_bytes()).unwrap().to_string();
        let user = json!({"email": EMAIL, "passwordHash": hash, "subject": "ann", "scopes": ["patients:read"]});
        let users = scratch.path().join("users.json");
        fs::write(&users, json!({"users": [user]}).to_string()).unwrap();
        let mut environment = Environment::empty()
            .with("SERVER_PORT", "0")
            .with("TOKEN_ISSUER", ISSUER)
            .with("USERS_FILE", users.to_str().unwrap())
            .with("SIGNING_KEY_FILE", scratch.path().join("key.pk8").to_str().unwrap());
        for (name, value) in settings {
            environment = environment.with(*name, *value);
        }
        let mut reader = Reader::new(environment);
        let settings = Settings::read(&mut reader);
        let settings = reader.finish(settings).unwrap().0;
        let service = Service::build(settings).await.unwrap();
        let (address, shutdown) = (service.address(), Shutdown::new());
        let running = runtime::spawn(service.run(shutdown.clone()));
        test(Harness { client: Client::new(address), address }).await;
        shutdown.trigger();
        running.await.unwrap();
    });
}

impl Harness {
    pub(crate) async fn login(&self, email: &str, password: &str, headers: &[(&str, &str)]) -> Response {
        let body = json!({"email": email, "password": password});
        self.client.send(Method::Post, "/auth/login", headers, Some(&body)).await.unwrap()
    }

    pub(crate) async fn token(&self) -> String {
        let answer = self.login(EMAIL, PASSWORD, &[]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn validate(&self, token: &str) -> u16 {
        let authorization = format!("Bearer {token}");
        let headers = [("authorization", authorization.as_str())];
        self.client.send(Method::Get, "/auth/validate", &headers, None).await.unwrap().status
    }

    pub(crate) async fn get(&self, path: &str) -> Json {
        self.client.get(path).await.unwrap().json()
    }
}
