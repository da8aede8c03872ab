//! Encoding and decoding of events.

use chrono::{DateTime, NaiveDate};
use codec::{
    event::{Event, EventKind, ReceivedEvent},
    headers,
};
use divan::{Bencher, black_box};
use uuid::Uuid;

fn main() {
    divan::main();
}

const ID: Uuid = Uuid::from_u128(0x0190_a4c8_9a3b_7c1d_8e2f_3a4b_5c6d_7e8f);

fn event() -> Event<'static> {
    Event {
        id: ID,
        patient_id: ID,
        kind: EventKind::Created,
        version: 1,
        time: DateTime::from_timestamp(1_720_000_000, 123_456_000).expect("it is a time"),
        name: "Amara Abebe",
        email: "amara.abebe@example.org",
        registered_date: NaiveDate::from_ymd_opt(2024, 2, 29).expect("it is a date"),
        date_of_birth: NaiveDate::from_ymd_opt(1990, 12, 31).expect("it is a date"),
    }
}

#[divan::bench]
fn encode() -> Vec<u8> {
    black_box(event()).encode()
}

#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let bytes = event().encode();
    bencher.bench_local(|| ReceivedEvent::decode(black_box(&bytes)));
}

#[divan::bench]
fn headers_of_an_event() -> headers::Headers {
    let traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    headers::event_headers(black_box(ID), EventKind::Created, event().time, Some(traceparent))
}
