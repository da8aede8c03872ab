use std::{
    cell::RefCell,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::TraceContext;

thread_local! {
    /// The propagated headers of the request whose future this thread is polling.
    static CURRENT: RefCell<Propagated> = const { RefCell::new(Propagated(None)) };
}

/// The headers that are propagated besides `traceparent`: `tracestate`, with the data of tracing systems, and
/// `baggage`, with the data of applications. They are propagated unchanged, whether spans are collected or not; nothing
/// here reads, logs or stores them.
///
/// ```
/// use telemetry::Propagated;
///
/// # smol::block_on(async {
/// let received = [("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "vendor=1")];
/// let request = Propagated::extract(|name| received.iter().filter(move |(key, _)| *key == name).map(|(_, value)| *value));
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

    /// Most bytes of each: the minimum that the specifications demand. A longer value is dropped.
    const MAX_TRACESTATE: usize = 512;
    const MAX_BAGGAGE: usize = 8192;

    /// Reads the headers of a request; `values` returns the values of a header in their order. `tracestate` counts only
    /// with a valid `traceparent`.
    pub fn extract<'a, V: Iterator<Item = &'a str>>(values: impl Fn(&'static str) -> V) -> Self {
        let tracestate = joined(values(Self::TRACESTATE), Self::MAX_TRACESTATE)
            .filter(|_| single(values(TraceContext::HEADER)).and_then(TraceContext::parse).is_some());
        let baggage = joined(values(Self::BAGGAGE), Self::MAX_BAGGAGE);
        let some = tracestate.is_some() || baggage.is_some();
        Self(some.then(|| Arc::new(Fields { tracestate, baggage })))
    }

    /// The headers of the current request.
    pub fn current() -> Self {
        CURRENT.with_borrow(Self::clone)
    }

    /// The headers to add to a call on behalf of the request, besides `traceparent`.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let fields = self.0.iter().flat_map(|fields| {
            [(Self::TRACESTATE, fields.tracestate.as_deref()), (Self::BAGGAGE, fields.baggage.as_deref())]
        });
        fields.filter_map(|(name, value)| Some((name, value?)))
    }

    /// Runs `work` with these headers as the current ones, on whatever threads it is polled.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        Scope { work, propagated: self }
    }
}

pin_project! {
    /// Work with its current headers. A type, as the scope of a span is.
    struct Scope<F> {
        #[pin]
        work: F,
        propagated: Propagated,
    }
}

impl<F: Future> Future for Scope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _entered = Entered::new(this.propagated);
        this.work.poll(context)
    }
}

/// During one poll, swaps headers into [`CURRENT`] and restores the previous ones when dropped.
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

/// The value of a header, if there is exactly one.
fn single<'a>(mut values: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    values.next().filter(|_| values.next().is_none())
}

/// The values of a header joined to one list; none if it is longer than `max` bytes or has a character that no header
/// may have.
fn joined<'a>(mut values: impl Iterator<Item = &'a str>, max: usize) -> Option<String> {
    let mut list = values.next()?.trim().to_owned();
    for value in values {
        list.push(',');
        list.push_str(value.trim());
    }
    let visible = list.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte));
    (!list.is_empty() && list.len() <= max && visible).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: (&str, &str) = ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");

    fn propagated(received: &[(&str, &str)]) -> Vec<(&'static str, String)> {
        let values = |name| received.iter().filter(move |(found, _)| *found == name).map(|(_, value)| *value);
        Propagated::extract(values).headers().map(|(name, value)| (name, value.to_owned())).collect()
    }

    #[test]
    fn headers_are_propagated_unchanged_up_to_a_limit() {
        let received = [PARENT, ("tracestate", "a=1"), ("tracestate", " b=2"), ("baggage", "user=x;p,tier=gold")];
        let expected = [("tracestate", "a=1,b=2".to_owned()), ("baggage", "user=x;p,tier=gold".to_owned())];
        assert_eq!(propagated(&received), expected);
        let (most, more) = (format!("a={}", "x".repeat(510)), format!("a={}", "x".repeat(511)));
        assert_eq!(propagated(&[PARENT, ("tracestate", &most)]), [("tracestate", most.clone())]);
        assert_eq!(propagated(&[PARENT, ("tracestate", &more)]), []);
        assert_eq!(propagated(&[("baggage", &"x".repeat(8193))]), []);
        assert_eq!(propagated(&[("baggage", "a=b\u{e9}"), ("tracestate", "")]), []);
        assert_eq!(propagated(&[]), []);
    }

    #[test]
    fn a_tracestate_without_a_valid_traceparent_is_dropped() {
        assert_eq!(propagated(&[("tracestate", "a=1")]), []);
        assert_eq!(propagated(&[PARENT, PARENT, ("tracestate", "a=1")]), []);
        assert_eq!(
            propagated(&[("traceparent", "00-0-0-0"), ("tracestate", "a=1"), ("baggage", "b=2")]),
            [("baggage", "b=2".to_owned())]
        );
    }

    #[test]
    fn headers_are_current_only_while_their_work_is_polled() {
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
