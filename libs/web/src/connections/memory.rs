//! The memory limit that all connections share.
//!
//! A connection is charged for what it holds: the bytes of an incomplete head or TLS record, the buffers of the current
//! request, its body, a response that its client has not read. When the charges exceed [`Limits::buffers`](crate::Limits::buffers),
//! first idle connections release their buffers, and then the connection is evicted whose client has been waited for
//! longest.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::Context,
};

use telemetry::metrics::{self, IntCounter, IntGauge};

use super::{Client, Connection, Connections, UNSET};

static HELD: LazyLock<IntGauge> = LazyLock::new(|| {
    metrics::gauge("http_buffer_bytes", "Memory held for what HTTP clients have not sent or taken completely.")
});
static EVICTED: LazyLock<IntCounter> = LazyLock::new(|| {
    metrics::counter("http_connections_evicted_total", "HTTP connections closed because others needed their memory.")
});

/// Bytes charged for a request besides its head and body: hyper's buffers and the futures of the handler.
pub(crate) const REQUEST_OVERHEAD: usize = 20 * 1024;

/// What all connections are charged for together, in bytes.
pub(super) struct MemoryBudget {
    charged: AtomicUsize,
    limit: usize,
}

impl MemoryBudget {
    pub(super) fn new(limit: usize) -> Self {
        Self { charged: AtomicUsize::new(0), limit }
    }

    /// Replaces the charge of a connection.
    pub(super) fn set_charge(&self, connection: &Connection, bytes: usize) {
        self.replace(&connection.charged, bytes);
    }

    /// Replaces what a connection is charged for records of TLS.
    fn set_record_charge(&self, connection: &Connection, bytes: usize) {
        self.replace(&connection.records_charged, bytes);
    }

    /// Ends both charges of a connection.
    pub(super) fn discharge(&self, connection: &Connection) {
        self.set_charge(connection, 0);
        self.set_record_charge(connection, 0);
    }

    fn replace(&self, charge: &AtomicUsize, bytes: usize) {
        // Not atomic together, which would need a lock; the sum is correct after both.
        self.charged.fetch_add(bytes, Ordering::Relaxed);
        self.charged.fetch_sub(charge.swap(bytes, Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Whether more than half of the memory is in use; then idle connections release theirs at once.
    pub(super) fn is_short(&self) -> bool {
        self.charged.load(Ordering::Relaxed) > self.limit / 2
    }

    fn is_exceeded(&self) -> bool {
        self.charged.load(Ordering::Relaxed) > self.limit
    }

    /// Sets the metric.
    pub(super) fn report(&self) {
        HELD.set(i64::try_from(self.charged.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
    }
}

impl Connections {
    /// Frees memory until the charges are within the limit; false if no connection but `requester` is left to evict.
    pub(super) fn make_room(&self, requester: &Arc<Connection>) -> bool {
        if !self.memory.is_exceeded() {
            return true;
        }
        let open = self.lock();
        for connection in open.values().filter(|connection| connection.holds_idle_buffers()) {
            connection.release();
            // It frees the buffers as soon as its task runs.
            self.memory.set_charge(connection, 0);
        }
        while self.memory.is_exceeded() {
            let held = open.values().filter(|connection| connection.is_charged());
            let waiting = held.map(|connection| (connection.client_awaited_since(), connection));
            // Another one, of several that have been waited for equally long.
            let order = |(since, connection): &(u64, &Arc<Connection>)| (*since, Arc::ptr_eq(connection, requester));
            let longest = waiting.filter(|(since, _)| *since != UNSET).min_by_key(order);
            match longest {
                // Not the requester: its request is rejected, and it can still get a response.
                Some((_, connection)) if !Arc::ptr_eq(connection, requester) => {
                    connection.evict();
                    EVICTED.inc();
                    self.memory.discharge(connection);
                }
                _ => return false,
            }
        }
        true
    }
}

impl Connection {
    fn is_charged(&self) -> bool {
        self.charged.load(Ordering::Relaxed) > 0 || self.records_charged.load(Ordering::Relaxed) > 0
    }
}

impl Client {
    /// Charges the connection for this many bytes of incomplete TLS records, and notes since when it waits for the rest;
    /// false if there is no room for them.
    pub(super) fn records_held(&self, bytes: usize, context: &Context<'_>) -> bool {
        if self.is_evicted() {
            return false;
        }
        // Twice, because rustls keeps them in a `Vec`, which grows by doubling.
        let charge = 2 * bytes;
        if self.connection.record_since.load(Ordering::Relaxed) == UNSET {
            self.connection.record_since.store(self.all.now(), Ordering::Relaxed);
        } else if self.connection.records_charged.load(Ordering::Relaxed) == charge {
            return true;
        }
        self.connection.task.register(context.waker());
        self.all.memory.set_record_charge(&self.connection, charge);
        self.all.make_room(&self.connection)
    }

    pub(super) fn is_memory_short(&self) -> bool {
        self.all.memory.is_short()
    }

    /// Notes that TLS has passed on what it held, up to this many bytes of the next record. The time for those starts when the
    /// connection waits for the rest.
    pub(super) fn records_ended(&self, bytes: usize) {
        self.connection.record_since.store(UNSET, Ordering::Relaxed);
        let charge = 2 * bytes;
        // It is not raised before the connection waits.
        if self.connection.records_charged.load(Ordering::Relaxed) > charge {
            self.all.memory.set_record_charge(&self.connection, charge);
        }
    }

    /// Charges the connection for a request with a head of this many bytes; false if there is no room for it.
    pub(crate) fn request_started(&self, head: usize) -> bool {
        // Three times: hyper's copy, tide's, and the overhead of both.
        self.set_charge(REQUEST_OVERHEAD + 3 * head)
    }

    /// Adds to the charge of the connection; false, and unchanged, if there is no room.
    pub(crate) fn charge(&self, bytes: usize) -> bool {
        let before = self.charged();
        let has_room = self.set_charge(before + bytes);
        if !has_room {
            self.all.memory.set_charge(&self.connection, before);
        }
        has_room
    }

    /// Replaces the charge of the connection, and frees memory of others if there is too little; false if it is not
    /// enough.
    pub(super) fn set_charge(&self, bytes: usize) -> bool {
        self.all.memory.set_charge(&self.connection, bytes);
        self.all.make_room(&self.connection)
    }

    pub(super) fn charged(&self) -> usize {
        self.connection.charged.load(Ordering::Relaxed)
    }
}
