//! The messages that the library logs in a test's process.
#![allow(dead_code, reason = "no test uses all of it")]

use std::{
    fmt::Debug,
    sync::{Mutex, PoisonError},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Collects the messages.
struct Log;

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("postgres")
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Message);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

struct Message;

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            MESSAGES.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{value:?}"));
        }
    }
}

/// Begins to collect them.
pub(crate) fn collect() {
    tracing::subscriber::set_global_default(Log).unwrap();
}

/// Whether one of them contains this.
pub(crate) fn contain(text: &str) -> bool {
    count(text) > 0
}

/// How many of them contain this.
pub(crate) fn count(text: &str) -> usize {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|message| message.contains(text)).count()
}
