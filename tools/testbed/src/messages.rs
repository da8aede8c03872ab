//! The messages that our code logs in the process of a test.

use std::{
    fmt::Debug,
    sync::{Mutex, Once, PoisonError},
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::set_global_default,
};

static MESSAGES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Begins to collect the messages of a target and of the modules in it. All tests of the process share them, so that a test
/// looks for words of its own. Later calls change nothing.
///
/// # Panics
/// If the process has another subscriber.
pub fn collect(target: &'static str) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| set_global_default(Collector { target }).expect("it is the only subscriber"));
}

/// How many of the messages contain this text.
pub fn count(text: &str) -> usize {
    MESSAGES.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|message| message.contains(text)).count()
}

struct Collector {
    target: &'static str,
}

impl Subscriber for Collector {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with(self.target)
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
