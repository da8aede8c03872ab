//! The bridge to rskafka, which runs on tokio.

use std::{future::Future, time::Duration};

use async_compat::Compat;
use rskafka::{
    BackoffConfig,
    client::{Client, ClientBuilder, error::Error as Rskafka},
};

use crate::{Error, Settings, call::Deadline};

/// The largest response. Those of topic management are far smaller.
const MESSAGE_LIMIT: usize = 32 * 1024 * 1024;

/// Runs `work` in the context of tokio until the deadline. It is dropped there too: rskafka spawns a task when a request is
/// dropped.
pub(crate) async fn call<T>(
    operation: &'static str,
    deadline: Deadline,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    // Boxed, because rskafka's futures are deep and large, and would be part of every caller's.
    crate::call::call(operation, deadline, Compat::new(Box::pin(work))).await
}

/// Connects. Call it inside [`call`].
pub(crate) async fn connect(settings: &Settings) -> Result<Client, Rskafka> {
    let brokers = settings.bootstrap.0.iter().map(ToString::to_string).collect();
    let mut builder = ClientBuilder::new(brokers);
    if let Some(tls) = &settings.security.tls {
        builder = builder.tls_config(tls.config());
    }
    if let Some(sasl) = &settings.security.sasl {
        builder = builder.sasl_config(sasl.into());
    }
    builder
        .client_id(settings.client_id)
        .max_message_size(MESSAGE_LIMIT)
        // Of rskafka's retries; the deadline of the call ends them.
        .backoff_config(BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
            deadline: Some(settings.deadline),
        })
        .build()
        .await
}
