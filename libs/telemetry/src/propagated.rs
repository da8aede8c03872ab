use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::Arc,
};

use crate::TraceContext;

thread_local! {
    /// What came with the request that this thread is polling.
    static CURRENT: RefCell<Propagated> = const { RefCell::new(Propagated(None)) };
}

/// What a caller wants to be passed on beside its `traceparent`: `tracestate`, in which tracing systems keep what is their
/// own, and `baggage`, in which programs keep what is theirs. It goes on as it came, whether spans are collected or not;
/// nothing here reads, logs or stores it.
///
/// ```
/// use telemetry::Propagated;
///
/// # smol::block_on(async {
/// let came = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "vendor=1")];
/// let request = Propagated::extract(|name| came.iter().filter(move |(key, _)| *key == name).map(|(_, value)| *value));
/// request.scope(async { assert_eq!(Propagated::current().headers().collect::<Vec<_>>(), [("tracestate", "vendor=1")]) }).await;
/// # });
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Propagated(Option<Arc<Fields>>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Fields {
    tracestate: Option<String>,
    baggage: Option<String>,
}

impl Propagated {
    /// The name of the header of W3C Trace Context, in HTTP and in gRPC metadata.
    pub const TRACESTATE: &'static str = "tracestate";
    /// The name of the header of W3C Baggage.
    pub const BAGGAGE: &'static str = "baggage";

    /// Bytes of each that are passed on at most: as many as the specifications demand. More is dropped as a whole.
    const MAX_TRACESTATE: usize = 512;
    const MAX_BAGGAGE: usize = 8192;

    /// Takes it from a request, of which `values` gives the values of a header, in their order. A `tracestate` without a
    /// right `traceparent` says nothing.
    pub fn extract<'a, V: Iterator<Item = &'a str>>(values: impl Fn(&'static str) -> V) -> Self {
        let tracestate = joined(values(Self::TRACESTATE), Self::MAX_TRACESTATE)
            .filter(|_| only(values(TraceContext::HEADER)).and_then(TraceContext::parse).is_some());
        let baggage = joined(values(Self::BAGGAGE), Self::MAX_BAGGAGE);
        let some = tracestate.is_some() || baggage.is_some();
        Self(some.then(|| Arc::new(Fields { tracestate, baggage })))
    }

    /// That of the request around this call.
    pub fn current() -> Self {
        CURRENT.with_borrow(Self::clone)
    }

    /// The headers that a call on behalf of the request carries on, beside its `traceparent`.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fields = self.0.iter().flat_map(|fields| {
            [(Self::TRACESTATE, fields.tracestate.as_deref()), (Self::BAGGAGE, fields.baggage.as_deref())]
        });
        fields.filter_map(|(name, value)| Some((name, value?)))
    }

    /// Does `work` with this as what came with its request, on whatever threads it is polled.
    pub async fn scope<T>(mut self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        poll_fn(|context| {
            let _entered = Entered::new(&mut self);
            work.as_mut().poll(context)
        })
        .await
    }
}

/// The time of one poll, in which something stands in [`CURRENT`] and what was there waits in its place.
struct Entered<'a>(&'a mut Propagated);

impl<'a> Entered<'a> {
    fn new(propagated: &'a mut Propagated) -> Self {
        CURRENT.with_borrow_mut(|current| mem::swap(current, propagated));
        Self(propagated)
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        CURRENT.with_borrow_mut(|current| mem::swap(current, self.0));
    }
}

/// The value of a header that must not come twice.
fn only<'a>(mut values: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    values.next().filter(|_| values.next().is_none())
}

/// The values of a header that may come several times, as one list; none if they are too long or cannot be a header again.
fn joined<'a>(mut values: impl Iterator<Item = &'a str>, most: usize) -> Option<String> {
    let mut list = values.next()?.trim().to_owned();
    for value in values {
        list.push(',');
        list.push_str(value.trim());
    }
    let visible = list.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
    (!list.is_empty() && list.len() <= most && visible).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: (&str, &str) = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");

    fn passed_on(came: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let values = |name| came.iter().filter(move |(found, _)| *found == name).map(|(_, value)| *value);
        Propagated::extract(values).headers().map(|(name, value)| (name, value.to_owned())).collect()
    }

    #[test]
    fn what_is_passed_on_is_what_came_up_to_a_limit() {
        let came = [PARENT, ("tracestate", "a=1"), ("tracestate", " b=2"), ("baggage", "user=x;p,tier=gold")];
        let expected = [("tracestate", "a=1,b=2".to_owned()), ("baggage", "user=x;p,tier=gold".to_owned())];
        assert_eq!(passed_on(&came), expected);
        let (most, more) = (format!("a={}", "x".repeat(510)), format!("a={}", "x".repeat(511)));
        assert_eq!(passed_on(&[PARENT, ("tracestate", &most)]), [("tracestate", most.clone())]);
        assert_eq!(passed_on(&[PARENT, ("tracestate", &more)]), []);
        assert_eq!(passed_on(&[("baggage", &"x".repeat(8193))]), []);
        assert_eq!(passed_on(&[("baggage", "a=b\u{e9}"), ("tracestate", "")]), []);
        assert_eq!(passed_on(&[]), []);
    }

    #[test]
    fn a_tracestate_without_a_right_traceparent_is_dropped() {
        assert_eq!(passed_on(&[("tracestate", "a=1")]), []);
        assert_eq!(passed_on(&[PARENT, PARENT, ("tracestate", "a=1")]), []);
        assert_eq!(
            passed_on(&[("traceparent", "00-0-0-0"), ("tracestate", "a=1"), ("baggage", "b=2")]),
            [("baggage", "b=2".to_owned())]
        );
    }

    #[test]
    fn it_is_current_while_its_work_is_polled_and_no_longer() {
        let of =
            |value: &'static str| Propagated::extract(move |name| (name == "baggage").then_some(value).into_iter());
        smol::block_on(async {
            let work = |value: &'static str| {
                of(value).scope(async move {
                    for _ in 0..3 {
                        smol::future::yield_now().await;
                        assert_eq!(Propagated::current(), of(value));
                    }
                    Propagated::default().scope(async { assert_eq!(Propagated::current().headers().count(), 0) }).await;
                    assert_eq!(Propagated::current(), of(value));
                })
            };
            smol::future::zip(work("a=1"), work("b=2")).await;
        });
        assert_eq!(Propagated::current(), Propagated::default());
    }
}
