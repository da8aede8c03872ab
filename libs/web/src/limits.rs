use std::time::Duration;

/// Bounds on what clients can make a server hold, and for how long.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. Above it, the connection that has been idle longest is closed for the new one.
    pub connections: usize,
    /// Requests being handled. Above it, a request is answered 503 with `Retry-After`; health and metrics are exempt.
    pub in_flight: usize,
    /// Bytes of a request's head. Above it, 431.
    pub head: usize,
    /// Bytes of a request's body. Above it, 413.
    pub body: usize,
    /// Time from a connection's start, or from the last answer, to the end of the next request's head.
    pub head_wait: Duration,
    /// Time for a request's whole body. After it, 408.
    pub body_wait: Duration,
    /// Time without the client taking any byte of an answer.
    pub write_wait: Duration,
    /// Time for requests in flight after the shutdown.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            in_flight: 512,
            head: 32 * 1024,
            body: 64 * 1024,
            head_wait: Duration::from_secs(60),
            body_wait: Duration::from_secs(10),
            write_wait: Duration::from_secs(20),
            drain: Duration::from_secs(10),
        }
    }
}
