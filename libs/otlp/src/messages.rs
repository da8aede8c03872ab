//! What leaves a service, as OpenTelemetry's messages.

mod logs;
mod metrics;
mod traces;

use std::{collections::BTreeMap, time::SystemTime};

use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value},
    resource::v1::Resource,
};
use telemetry::span::Value;

pub(crate) use self::{logs::logs, metrics::metrics, traces::traces};

/// The flag of W3C Trace Context that says that a trace is sampled; others are not recorded.
const SAMPLED: u32 = 1;

/// What is true of everything that a process sends, by name.
pub(crate) type Attributes = BTreeMap<String, String>;

fn resource(attributes: &Attributes) -> Option<Resource> {
    let attributes = attributes.iter().map(|(name, value)| attribute(name, value.clone().into())).collect();
    Some(Resource { attributes, ..Resource::default() })
}

fn scope() -> Option<InstrumentationScope> {
    Some(InstrumentationScope { name: env!("CARGO_PKG_NAME").to_owned(), ..InstrumentationScope::default() })
}

fn attribute(name: &str, value: Value) -> KeyValue {
    let value = match value {
        Value::Text(text) => any_value::Value::StringValue(text.into_owned()),
        Value::Number(number) => any_value::Value::IntValue(number),
    };
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

fn nanoseconds(time: SystemTime) -> u64 {
    // A clock before 1970 is nobody's.
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
