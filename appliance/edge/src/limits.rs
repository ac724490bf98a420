//! Every limit of the edge, with its default. Plain values: nothing here enforces them.

use std::time::Duration;

/// What peers may use and how long they may take. Durations are kept to within two [`tick`](Limits::tick)s, never early.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Live connections of the process; more are closed as they are accepted. Default 4096.
    pub connections_max: usize,
    /// Live connections of one IPv4 address or one IPv6 /64. Default 512.
    pub connections_per_address_max: usize,
    /// TLS handshakes at a time in the process. Default 256.
    pub handshakes_max: usize,

    /// From accepting to the end of the TLS handshake. Default 5 s.
    pub handshake_timeout: Duration,
    /// From a request's first byte (or the handshake's end) to the end of its head. Default 10 s.
    pub head_timeout: Duration,
    /// Without a request in flight. Default 60 s.
    pub idle_timeout: Duration,
    /// A body may take this long, and then longer at [`body_bytes_per_second_min`](Limits::body_bytes_per_second_min).
    /// Default 15 s.
    pub body_timeout: Duration,
    /// Slowest lasting rate of a request's body. Default 4 KiB/s.
    pub body_bytes_per_second_min: u64,
    /// A client that does not take what was written to it, or the next item of a stream, for this long is cut.
    /// Default 20 s.
    pub write_timeout: Duration,
    /// What a client must take within [`write_timeout`](Limits::write_timeout) to count as reading, unless there is no
    /// more. Default 4 KiB.
    pub write_bytes_min: usize,
    /// How long a connection that was told its end may stay to take its last bytes. Default 2 s.
    pub linger_timeout: Duration,
    /// What such a connection may still send, unread. Default 1 MiB.
    pub linger_bytes_max: usize,

    /// Request line and headers of HTTP/1.1, header list of HTTP/2. Default 16 KiB.
    pub head_bytes_max: usize,
    /// Header fields of one HTTP/1.1 request. Default 64.
    pub headers_max: usize,
    /// Body of one request, whatever its handler would take. Default 16 MiB.
    pub body_bytes_max: usize,
    /// Read buffer and write buffer of an HTTP/1.1 connection, each. Default 64 KiB.
    pub buffer_bytes_max: usize,

    /// HTTP/2: streams at a time on a connection. Default 128.
    pub streams_max: u32,
    /// HTTP/2: streams that the client reset before they were looked at; more end the connection. Default 20.
    pub pending_resets_max: usize,
    /// HTTP/2: streams that were reset for the client's faults; more end the connection. Default 128.
    pub fault_resets_max: usize,
    /// HTTP/2: what a stream may send unread. Default 64 KiB.
    pub stream_window_bytes: u32,
    /// HTTP/2: what a connection may send unread. Default 1 MiB.
    pub connection_window_bytes: u32,
    /// HTTP/2: what waits in a stream's send buffer. Default 64 KiB.
    pub stream_send_bytes_max: usize,
    /// HTTP/2: a ping is sent so often. Default 30 s.
    pub ping_interval: Duration,
    /// HTTP/2: a ping must be answered within this. Default 20 s.
    pub ping_timeout: Duration,

    /// How often a core looks at its deadlines while it has connections. Default 250 ms.
    pub tick: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 4096,
            connections_per_address_max: 512,
            handshakes_max: 256,
            handshake_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(15),
            body_bytes_per_second_min: 4 << 10,
            write_timeout: Duration::from_secs(20),
            write_bytes_min: 4 << 10,
            linger_timeout: Duration::from_secs(2),
            linger_bytes_max: 1 << 20,
            head_bytes_max: 16 << 10,
            headers_max: 64,
            body_bytes_max: 16 << 20,
            buffer_bytes_max: 64 << 10,
            streams_max: 128,
            pending_resets_max: 20,
            fault_resets_max: 128,
            stream_window_bytes: 64 << 10,
            connection_window_bytes: 1 << 20,
            stream_send_bytes_max: 64 << 10,
            ping_interval: Duration::from_secs(30),
            ping_timeout: Duration::from_secs(20),
            tick: Duration::from_millis(250),
        }
    }
}
