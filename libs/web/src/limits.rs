use std::time::Duration;

/// Bounds on what clients can make a server hold, and for how long. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. Above it, the longest idle connection is closed for the new one.
    pub connections: usize,
    /// Requests being handled. Above it, a request is answered 503 with `Retry-After`; health and metrics are exempt.
    pub in_flight: usize,
    /// Bytes of a request's head. Above it, 431.
    pub head: usize,
    /// Bytes of a request's body. Above it, 413.
    pub body: usize,
    /// Memory of all connections together for heads, bodies and responses that clients have not sent or read completely,
    /// and for the buffers of requests. Above it, idle connections release their buffers, and then the connections are
    /// evicted whose clients have been waited for longest.
    pub buffers: usize,
    /// Time from a connection's start, or from the last response, to the first byte of the next request.
    pub idle_timeout: Duration,
    /// Time from the first byte of a request's head to its last.
    pub head_timeout: Duration,
    /// Time for a request's whole body. After it, 408.
    pub body_timeout: Duration,
    /// Time in which a client must read some bytes of a response, and acknowledge those that were sent. A response of
    /// known length must be read completely within this time and another second for each 4 KiB.
    pub write_timeout: Duration,
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
            idle_timeout: Duration::from_secs(620),
            head_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(20),
            drain: Duration::from_secs(10),
        }
    }
}
