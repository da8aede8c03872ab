//! The console, as the tour asks it: on a secure system, as a person who has logged in.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow, bail};
use serde_json::Value as Json;
use surf::http::Method;
use testbed::http::{Client, Response};

use crate::{
    secure::{DEVELOPER, Secure},
    settings::Settings,
};

/// Time for an event to reach the counts.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(100);

pub(super) struct Console {
    client: Client,
    /// Of the session, if the console knows people.
    cookie: Option<String>,
}

impl Console {
    /// # Errors
    /// If it does not respond, or lets nobody log in.
    pub(super) async fn open(settings: &Settings, secure: Option<&Secure>) -> Result<Self> {
        let client = Client::new(format!("127.0.0.1:{}", settings.console_port));
        if client.get("/api/info").await.is_err() {
            bail!("The tour needs the console, which does not respond: just up");
        }
        let cookie = match secure {
            Some(secure) => Some(log_in(&client, secure).await?),
            None => None,
        };
        Ok(Self { client, cookie })
    }

    async fn get(&self, path: &str) -> Result<Response> {
        let headers: Vec<_> = self.cookie.iter().map(|cookie| ("cookie", cookie.as_str())).collect();
        Ok(self.client.send(Method::Get, path, &headers, None).await?)
    }

    /// Waits until it says that the event of a request has been delivered.
    pub(super) async fn until_delivered(&self, trace: &str) -> Result<()> {
        let end = Instant::now() + DELIVERY_TIMEOUT;
        let path = format!("/api/journeys/{trace}");
        loop {
            let state = self.get(&path).await.map(|answer| answer.json()["state"].clone()).unwrap_or(Json::Null);
            if state == "delivered" {
                return Ok(());
            }
            if Instant::now() > end {
                bail!("The event has not been delivered within {DELIVERY_TIMEOUT:?}, the journey's state is {state}.");
            }
            smol::Timer::after(POLL_INTERVAL).await;
        }
    }
}

/// The cookie of a session, which the console gives its own page alone.
async fn log_in(client: &Client, secure: &Secure) -> Result<String> {
    let user = serde_json::from_str(&fs::read_to_string(secure.user_file(DEVELOPER))?)?;
    let headers = [("origin", client.base()), ("sec-fetch-site", "same-origin"), ("x-console", "1")];
    let answer = client.send(Method::Post, "/api/session", &headers, Some(&user)).await?;
    let cookie = answer.header("set-cookie").and_then(|cookie| cookie.split(';').next());
    cookie.map(str::to_owned).ok_or_else(|| anyhow!("The login to the console got {} {}", answer.status, answer.text()))
}
