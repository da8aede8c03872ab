use std::sync::Arc;

use telemetry::Outage;

/// Whether the relays can publish. Clones share the state.
#[derive(Clone, Debug, Default)]
pub struct BrokerState {
    outage: Arc<Outage<i32>>,
}

/// Why events cannot be published.
#[derive(Clone, Debug)]
pub(super) struct PublishFailure {
    /// Identifies its kind ([`kafka::Error::cause`]): each kind is logged once in an outage.
    pub(super) cause: String,
    pub(super) text: String,
}

impl From<&kafka::Error> for PublishFailure {
    fn from(error: &kafka::Error) -> Self {
        Self { cause: error.cause(), text: error.to_string() }
    }
}

impl BrokerState {
    /// Why events cannot be published, during an outage.
    pub fn error(&self) -> Option<String> {
        self.outage.reason()
    }

    /// Reports the state of one shard. The begin of an outage is logged once for all shards, and so is its end; in between each
    /// further cause once, because it may need another remedy.
    pub(super) fn report(&self, shard: i32, failure: Option<PublishFailure>) {
        match failure {
            Some(PublishFailure { cause, text: error }) => {
                if self.outage.failed_for(shard, &cause, &error) {
                    tracing::warn!(error, cause, "events cannot be published; they wait in the outbox");
                }
            }
            None => {
                if let Some(lasted) = self.outage.recovered_for(&shard) {
                    tracing::info!(lasted_ms = lasted.as_millis() as u64, "events can be published again");
                }
            }
        }
    }
}
