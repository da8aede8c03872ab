use std::time::Duration;

/// Bounds on what clients can make a server hold, and for how long.
///
/// What clients can make it hold is about [`request_bytes`](Self::request_bytes), 100 KB for each answer under way, 100 KB for
/// each call at work, and 50 KB for each connection: with the defaults, less than 45 MB in all.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. Above it, the one that has been of no use for longest is closed for the new one.
    pub connections: usize,
    /// Calls at once on one connection. A client holds further ones back by itself.
    pub streams: u32,
    /// Bytes of a call's head, as HTTP/2 counts them. Above it, 431.
    pub head: u32,
    /// Bytes of a call's request. Above it, OUT_OF_RANGE.
    pub request: usize,
    /// Bytes of all requests that have no answer yet. Above it, the requests that have been incomplete for longest are given
    /// up for new ones, and if there are none, new calls get RESOURCE_EXHAUSTED.
    pub request_bytes: usize,
    /// Calls whose handlers are at work. Above it, complete requests wait for their turn.
    pub running: usize,
    /// How long a complete request waits for its turn. After it, RESOURCE_EXHAUSTED.
    pub turn_wait: Duration,
    /// Answers that are being sent. Above it, the one whose reader has taken nothing for longest is broken off.
    pub sending: usize,
    /// Time from a call's head to its answer's head, whatever the client's own deadline is. After it, DEADLINE_EXCEEDED.
    pub call: Duration,
    /// Time in which the client of an answer takes nothing of it. After it, the answer is broken off.
    pub reader_wait: Duration,
    /// Time from a connection's start to the client's first frame.
    pub handshake: Duration,
    /// Time without the client taking any byte from the connection.
    pub write_wait: Duration,
    /// How often a connection is asked for a sign of life, and how long that may take.
    pub keep_alive: (Duration, Duration),
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 128,
            streams: 256,
            head: 8 * 1024,
            request: 64 * 1024,
            request_bytes: 16 * 1024 * 1024,
            running: 128,
            turn_wait: Duration::from_secs(2),
            sending: 128,
            call: Duration::from_secs(10),
            reader_wait: Duration::from_secs(300),
            handshake: Duration::from_secs(5),
            write_wait: Duration::from_secs(60),
            keep_alive: (Duration::from_secs(30), Duration::from_secs(20)),
        }
    }
}
