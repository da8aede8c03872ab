//! The one way into rskafka.

use std::{future::Future, time::Duration};

use async_compat::Compat;
use rskafka::{
    BackoffConfig,
    client::{Client, ClientBuilder, error::Error as Rskafka},
};

use crate::{Error, Settings, call::Deadline};

/// Bytes of an answer at most; what is asked for through rskafka has far smaller ones.
const MESSAGE_LIMIT: usize = 32 * 1024 * 1024;

/// Does `work` inside the bridge and within the deadline. Work that is late is dropped inside the bridge too: rskafka spawns
/// on tokio when a request is dropped.
pub(crate) async fn call<T>(
    operation: &'static str,
    deadline: Deadline,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    // Boxed, because rskafka's futures are deep and large, and would be part of every caller's.
    crate::call::call(operation, deadline, Compat::new(Box::pin(work))).await
}

/// Connects. To be used inside [`call`].
pub(crate) async fn connect(settings: &Settings) -> Result<Client, Rskafka> {
    let brokers = settings.bootstrap.0.iter().map(ToString::to_string).collect();
    ClientBuilder::new(brokers)
        .client_id(settings.client_id)
        .max_message_size(MESSAGE_LIMIT)
        // Pauses between rskafka's own attempts; ours end at the call's deadline.
        .backoff_config(BackoffConfig {
            init_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(1),
            base: 2.0,
            deadline: Some(settings.deadline),
        })
        .build()
        .await
}
