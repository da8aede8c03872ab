//! HTTP routes: the read models of all instances, the dead letters, and the stream of summaries.

mod bodies;
mod queries;

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use auth::{Caller, Scope};
use chrono::{DateTime, Datelike as _, NaiveDate, Utc};
use runtime::{Shutdown, timeout};
use serde::Serialize;
use smol::future::or;
use telemetry::metrics::{self, IntGauge};
use tide::{Response, StatusCode};
use web::{Edge, EventSender, Problem, Query, Router, StreamSlots, json};

pub(crate) use self::queries::Queries;
use self::queries::{SeriesQuery, SummaryStream};
use crate::{
    counts::Interval,
    state::{DeadLetterSummary, SharedState},
};

/// The largest number of points of a series.
const MAX_POINTS: usize = 5000;
/// The default and the largest page size of dead letters.
const PAGE_SIZE: (i64, i64) = (100, 1000);
/// The largest number of clients of the stream.
const MAX_STREAMS: usize = 64;
/// The shortest time between two summaries of a stream.
const STREAM_MIN_INTERVAL: Duration = Duration::from_millis(100);
/// A stream without changes repeats the summary at this interval, because proxies close idle connections.
const STREAM_KEEPALIVE: Duration = Duration::from_secs(15);
/// A stream asks the other instances for changes at this interval.
const OTHERS_POLL_INTERVAL: Duration = Duration::from_secs(1);
/// `Retry-After` of 503.
const RETRY_AFTER: Duration = Duration::from_secs(5);

static STREAMS: LazyLock<IntGauge> =
    LazyLock::new(|| metrics::gauge("analytics_streams", "Clients of the stream of summaries."));

/// The state of the handlers.
#[derive(Clone)]
pub(crate) struct App {
    queries: Queries,
    state: Arc<SharedState>,
    shutdown: Shutdown,
    streams: StreamSlots,
}

impl App {
    pub(crate) fn new(queries: Queries, state: Arc<SharedState>, shutdown: Shutdown) -> Self {
        Self { queries, state, shutdown, streams: StreamSlots::new(MAX_STREAMS) }
    }
}

type Request = tide::Request<App>;

/// Reads what was counted. It identifies nobody.
const ANALYTICS_READ: Scope = Scope::new("analytics:read");

/// The route table, with who may use each route.
pub(crate) fn routes(app: App, edge: Edge, in_flight: usize) -> Router<App> {
    Router::new(app)
        .edge(edge)
        .limit_in_flight(in_flight)
        .at_root(
            "This is analytics-service. What it has counted is at /analytics/summary, and the console, which shows the whole \
             system, is at http://127.0.0.1:4010/ unless CONSOLE_PORT chooses another port.",
        )
        .get("/analytics/summary", summary)
        .requires(ANALYTICS_READ)
        .get("/analytics/registrations", registrations)
        .requires(ANALYTICS_READ)
        .get("/analytics/dead-letters", dead_letters)
        .requires(ANALYTICS_READ)
        .get("/analytics/stream", stream)
        .requires(ANALYTICS_READ)
}

async fn summary(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let of_instance = query.parsed("scope", scope);
    let of_instance = query.finish(of_instance.is_some())?;
    let queries = &request.state().queries;
    if of_instance {
        return Ok(json(StatusCode::Ok, &queries.own_summary()));
    }
    Ok(json(StatusCode::Ok, &queries.summary(authorization(&request).as_deref()).await))
}

/// An instance asks another for what it has itself, so that it does not ask in turn.
fn scope(text: &str) -> Result<(), String> {
    (text == "instance").then_some(()).ok_or_else(|| "must be instance".to_owned())
}

/// The caller's token, which other instances check for themselves. With `AUTH=off` nobody has checked the header: it may hold
/// anything, and is passed on to nobody.
fn authorization(request: &Request) -> Option<String> {
    if !matches!(web::caller(request), Caller::Client(_)) {
        return None;
    }
    request.header("authorization").map(|values| values.last().as_str().to_owned())
}

#[derive(Serialize)]
struct PointBody {
    period: String,
    registrations: i64,
}

async fn registrations(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let interval = query.parsed("interval", |text| match text {
        "day" => Ok(Interval::Day),
        "month" => Ok(Interval::Month),
        "year" => Ok(Interval::Year),
        _ => Err("must be day, month or year".to_owned()),
    });
    // chrono alone would take "2024-1-1" and years of any length.
    let date = |text: &str| {
        let date = text.parse::<NaiveDate>().ok().filter(|date| date.to_string() == text && date.year() <= 9999);
        date.ok_or_else(|| "must be a date such as 2024-02-29".to_owned())
    };
    let (from, to) = (query.parsed("from", date), query.parsed("to", date));
    let of_instance = query.parsed("scope", scope).is_some();
    let interval = query.finish(interval.unwrap_or(Interval::Month))?;
    let queries = &request.state().queries;
    // One more than the limit shows that there are more.
    let series = SeriesQuery { interval, from, to, limit: MAX_POINTS + 1 };
    if of_instance {
        return Ok(json(StatusCode::Ok, &queries.own_registrations(series)));
    }
    let (series, missing) = queries.registrations(series, authorization(&request).as_deref()).await;
    if series.len() > MAX_POINTS {
        let detail =
            format!("That would be more than {MAX_POINTS} points; choose a shorter time or a longer interval.");
        return Err(Problem::bad_request(detail).kind("invalid-parameter"));
    }
    let points = series.into_iter().map(|(period, registrations)| PointBody { period, registrations });
    let mut response = json(StatusCode::Ok, &points.collect::<Vec<_>>());
    if missing.partial {
        // The body is an array, which has no place for it. Many clients take an empty header for none.
        let partitions: Vec<_> = missing.missing_partitions.iter().map(ToString::to_string).collect();
        let partitions = if partitions.is_empty() { "unknown".to_owned() } else { partitions.join(", ") };
        response.insert_header("missing-partitions", partitions);
    }
    Ok(response)
}

/// A dead letter without its content, which may be personal data.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeadLetterBody {
    id: i64,
    partition: i32,
    offset: i64,
    error: String,
    value_bytes: i64,
    stored_at: DateTime<Utc>,
    forwarded: bool,
}

impl From<DeadLetterSummary> for DeadLetterBody {
    fn from(letter: DeadLetterSummary) -> Self {
        let DeadLetterSummary { id, partition, offset, error, value_bytes, stored_at, forwarded } = letter;
        Self { id, partition, offset, error, value_bytes, stored_at, forwarded }
    }
}

async fn dead_letters(request: Request) -> Result<Response, Problem> {
    let mut query = Query::of(&request);
    let limit = query.number("limit", 1..=PAGE_SIZE.1).unwrap_or(PAGE_SIZE.0);
    let before = query.number("cursor", 1..=i64::MAX).unwrap_or(i64::MAX);
    query.finish(())?;
    // One more than the page shows whether there is a next page.
    let found = request.state().state.with(async |state| state.dead_letters(before, limit + 1).await).await;
    let mut letters = found.map_err(|error| {
        tracing::warn!(%error, "dead letters cannot be listed");
        Problem::unavailable("The state cannot be read now.", RETRY_AFTER)
    })?;
    let has_next = letters.len() as i64 > limit;
    letters.truncate(limit as usize);
    let last = letters.last().filter(|_| has_next).map(|letter| letter.id);
    let mut response = json(StatusCode::Ok, &letters.into_iter().map(DeadLetterBody::from).collect::<Vec<_>>());
    if let Some(last) = last {
        let link = format!("</analytics/dead-letters?limit={limit}&cursor={last}>; rel=\"next\"");
        response.insert_header("link", link);
    }
    Ok(response)
}

async fn stream(request: Request) -> Result<Response, Problem> {
    let app = request.state().clone();
    let Some(slot) = app.streams.take() else {
        return Err(Problem::unavailable("There are too many clients of the stream.", RETRY_AFTER));
    };
    let (events, response) = web::events();
    let (remaining, authorization) = (web::caller(&request).remaining(), authorization(&request));
    let summaries = app.queries.stream(authorization);
    let send = async move {
        let _slot = slot;
        let _counted = metrics::track(&STREAMS);
        let send = or(events.closed(), send_summaries(&summaries, &events));
        // The client may read the summaries as long as its token says so.
        let send = or(send, end_of(remaining));
        app.shutdown.run_until_stopped(send).await;
    };
    runtime::spawn(send).detach();
    Ok(response)
}

/// Waits for this time; without one, for ever.
async fn end_of(remaining: Option<Duration>) {
    match remaining {
        Some(remaining) => drop(smol::Timer::after(remaining).await),
        None => std::future::pending().await,
    }
}

/// Sends the summary now and after every change, until the client disconnects. Changes of other instances are looked for.
async fn send_summaries(summaries: &SummaryStream, events: &EventSender) {
    let (mut sent, mut last) = (Instant::now(), String::new());
    loop {
        let change = summaries.queries().next_change();
        let body = summaries.summary(OTHERS_POLL_INTERVAL).await;
        let text = serde_json::to_string(&body).expect("a summary can be serialized");
        let has_others = summaries.queries().has_others();
        if !has_others || text != last || sent.elapsed() >= STREAM_KEEPALIVE {
            if !events.send("summary", &text).await {
                return;
            }
            (sent, last) = (Instant::now(), text);
        }
        smol::Timer::after(STREAM_MIN_INTERVAL).await;
        // A change since the summary was read ends this wait at once.
        let _ = timeout(if has_others { OTHERS_POLL_INTERVAL } else { STREAM_KEEPALIVE }, change).await;
    }
}

#[cfg(test)]
mod tests {
    use auth::Authenticator;

    use super::*;
    use crate::{member_client::MemberClient, members::Members, read_model::ReadModel};

    #[test]
    fn every_route_requires_the_scope() {
        let mut reader = config::Reader::new(config::Environment::empty());
        let settings = web::Settings::read(&mut reader, "0");
        let state = Arc::new(SharedState::new("unused".into()));
        let queries = Queries::new(ReadModel::default(), Members::default(), MemberClient::new(None));
        let app = App::new(queries, state, Shutdown::new());
        let table = routes(app, Edge::new(&settings, Authenticator::off()), 1).access_table();
        assert_eq!(table.len(), 4);
        for (method, path, access) in table {
            assert_eq!(access, Some(web::Access::Scope(ANALYTICS_READ)), "{method} {path}");
        }
    }
}
