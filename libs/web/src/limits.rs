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
    /// Bytes of memory that all connections together may hold for what their clients have not sent or taken completely: heads,
    /// bodies, answers, and the buffers that a request needs. Above it, idle connections give their buffers back, and then
    /// clients that have been waited for longest lose their connection.
    pub buffers: usize,
    /// Time from a connection's start, or from the last answer, to the first byte of the next request.
    pub idle_wait: Duration,
    /// Time from the first byte of a request's head to its last.
    pub head_wait: Duration,
    /// Time for a request's whole body. After it, 408.
    pub body_wait: Duration,
    /// Time without the client taking any byte of an answer, or acknowledging one that was sent. The whole answer, where its length is known, has this time and
    /// another second for each 4 KiB.
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
            buffers: 16 * 1024 * 1024,
            idle_wait: Duration::from_secs(620),
            head_wait: Duration::from_secs(30),
            body_wait: Duration::from_secs(10),
            write_wait: Duration::from_secs(20),
            drain: Duration::from_secs(10),
        }
    }
}
