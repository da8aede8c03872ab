use std::time::Duration;

/// Bounds on a server's memory and on how long it waits for clients.
///
/// The memory is at most one and a half times [`request_bytes`](Self::request_bytes), and about 100 KB for each response that
/// is being sent, 100 KB for each call in flight, and 50 KB for each connection: with the defaults, less than 45 MB in all.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. Above it, the least recently used one is closed for the new one.
    pub connections: usize,
    /// Concurrent calls on one connection (`SETTINGS_MAX_CONCURRENT_STREAMS`).
    pub streams: u32,
    /// Bytes of a call's header list, as HTTP/2 counts them: enough for the `baggage` of 8 KiB that W3C has everybody pass on, or
    /// for the longest token, with all other headers. Above it, 431.
    pub head: u32,
    /// Bytes of a call's request. Above it, OUT_OF_RANGE.
    pub request: usize,
    /// Bytes of all requests that have no response yet, heads included. Above it, the oldest incomplete requests are evicted
    /// for new ones. If there are none, or those evicted take half as much again until their tasks end, new calls get
    /// RESOURCE_EXHAUSTED.
    pub request_bytes: usize,
    /// Calls that the service handles at once. Above it, complete requests wait in a queue.
    pub in_flight: usize,
    /// How long a complete request waits in the queue. After it, RESOURCE_EXHAUSTED.
    pub queue_wait: Duration,
    /// Responses that are being sent. Above it, the one whose client has read nothing for longest is aborted.
    pub responses: usize,
    /// Time from a call's headers to the response's headers, whatever the client's own deadline is. After it,
    /// DEADLINE_EXCEEDED.
    pub call: Duration,
    /// Time in which a client reads nothing of a response. After it, the response is aborted.
    pub reader_wait: Duration,
    /// Time from a connection's start to the client's first frame. After it, the connection is closed.
    pub handshake: Duration,
    /// Time in which a client reads nothing from the connection. After it, the connection is closed.
    pub write_wait: Duration,
    /// Interval between HTTP/2 pings on a connection, and the time for the response to one.
    pub keep_alive: (Duration, Duration),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            streams: 128,
            head: 16 * 1024,
            request: 64 * 1024,
            request_bytes: 6 * 1024 * 1024,
            in_flight: 128,
            queue_wait: Duration::from_secs(2),
            responses: 128,
            call: Duration::from_secs(10),
            reader_wait: Duration::from_secs(300),
            handshake: Duration::from_secs(5),
            write_wait: Duration::from_secs(60),
            keep_alive: (Duration::from_secs(30), Duration::from_secs(20)),
        }
    }
}
