use std::sync::Arc;

use telemetry::Outage;

/// How the broker is, as far as the relays know. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct BrokerState {
    outage: Arc<Outage<i32>>,
}

/// Why events cannot be published.
#[derive(Clone, Debug)]
pub(super) struct PublishFailure {
    /// What tells it from another one ([`kafka::Error::cause`]).
    pub(super) cause: String,
    pub(super) text: String,
}

impl From<&kafka::Error> for PublishFailure {
    fn from(error: &kafka::Error) -> Self {
        Self { cause: error.cause(), text: error.to_string() }
    }
}

impl BrokerState {
    /// Why events cannot be published, if there are some that cannot.
    pub fn error(&self) -> Option<String> {
        self.outage.reason()
    }

    /// Notes how it is for a shard. The begin of an outage is logged once for all shards, and so is its end; in between each
    /// other cause once, because it may be somebody else's to heal.
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
