//! What a request's head may not be, beyond what the parser refuses: two readings of one message.
//!
//! The parser accepts a bare LF as a line's end, and drops `content-length` when `transfer-encoding` is there, without a
//! word; another parser in front might do otherwise, and then a client could hide one request in another. So the bytes of
//! the head are kept beside the parser ([`HeadTap`]) and read again. Where they are not at hand (a request that was
//! pipelined behind another), a chunked body is refused, because its length is what smuggling needs.

use http::{HeaderMap, Method, Version, header, request};
use std::cell::RefCell;

/// Kept capacity between requests; most heads are far smaller.
const KEPT_BYTES: usize = 4 << 10;

/// Why a head was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadFault {
    /// HTTP/1.1 without `host`, or with several.
    #[error("a request needs exactly one host")]
    Host,
    /// Both `content-length` and `transfer-encoding`.
    #[error("a request may not have both content-length and transfer-encoding")]
    TwoLengths,
    /// An encoding other than `chunked`, or several.
    #[error("the only transfer-encoding taken is chunked")]
    TransferEncoding,
    /// A line that ends in LF without CR.
    #[error("a line of the head ends without a carriage return")]
    BareLineFeed,
    /// A chunked request that did not wait for the reply before it.
    #[error("a chunked request may not be pipelined")]
    PipelinedChunked,
}

/// The bytes received while no request was in flight: they begin with the next head, unless it was pipelined.
#[derive(Debug)]
pub(crate) struct HeadTap {
    bytes: RefCell<Vec<u8>>,
    bytes_max: usize,
}

impl HeadTap {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: RefCell::default(), bytes_max }
    }

    /// Keeps what was received, up to the longest head.
    pub(crate) fn record(&self, received: &[u8]) {
        let mut bytes = self.bytes.borrow_mut();
        let room = self.bytes_max.saturating_sub(bytes.len());
        bytes.extend_from_slice(&received[..received.len().min(room)]);
    }

    /// Forgets the bytes of a request that has ended.
    pub(crate) fn clear(&self) {
        let mut bytes = self.bytes.borrow_mut();
        bytes.clear();
        bytes.shrink_to(KEPT_BYTES);
    }

    /// Checks the head that the parser has read against its bytes.
    pub(crate) fn check(&self, head: &request::Parts) -> Result<(), HeadFault> {
        check_hosts(head)?;
        check_encoding(&head.headers)?;
        let chunked = head.headers.contains_key(header::TRANSFER_ENCODING);
        match raw_lines(&self.bytes.borrow(), &head.method) {
            Some(lines) => check_lines(lines),
            None if chunked => Err(HeadFault::PipelinedChunked),
            None => Ok(()),
        }
    }
}

fn check_hosts(head: &request::Parts) -> Result<(), HeadFault> {
    let hosts = head.headers.get_all(header::HOST).iter().count();
    let fine = hosts == 1 || (hosts == 0 && head.version < Version::HTTP_11);
    if fine { Ok(()) } else { Err(HeadFault::Host) }
}

fn check_encoding(headers: &HeaderMap) -> Result<(), HeadFault> {
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (encodings.next(), encodings.next()) {
        (None, _) => Ok(()),
        (Some(only), None) if only.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(HeadFault::TransferEncoding),
    }
}

/// What follows the request line, when `bytes` begin with a request of `method`.
///
/// No line of headers can pass for a request line: a name is not followed by a space.
fn raw_lines<'a>(bytes: &'a [u8], method: &Method) -> Option<impl Iterator<Item = &'a [u8]>> {
    let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let rest = bytes[begin..].strip_prefix(method.as_str().as_bytes())?;
    rest.starts_with(b" ").then(|| rest.split(|byte| *byte == b'\n'))
}

fn check_lines<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Result<(), HeadFault> {
    let (mut length, mut encoding) = (false, false);
    for line in lines {
        let line = line.strip_suffix(b"\r").ok_or(HeadFault::BareLineFeed)?;
        if line.is_empty() {
            break;
        }
        length |= is_field(line, b"content-length");
        encoding |= is_field(line, b"transfer-encoding");
    }
    if length && encoding { Err(HeadFault::TwoLengths) } else { Ok(()) }
}

fn is_field(line: &[u8], name: &[u8]) -> bool {
    line.get(name.len()) == Some(&b':') && line[..name.len()].eq_ignore_ascii_case(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(raw: &str, headers: &[(&str, &str)]) -> Result<(), HeadFault> {
        let tap = HeadTap::new(1024);
        tap.record(raw.as_bytes());
        let mut request = http::Request::post("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        tap.check(&request.body(()).unwrap().into_parts().0)
    }

    const HOST: (&str, &str) = ("host", "x");
    const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");

    #[test]
    fn plain_heads_pass() {
        assert_eq!(check("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na\nb", &[HOST]), Ok(()));
        assert_eq!(check("\r\nPOST / HTTP/1.1\r\nHost: x\r\n\r\n", &[HOST]), Ok(()));
        let chunked = "POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nContent-Length: 3\r\n";
        assert_eq!(check(chunked, &[HOST, CHUNKED]), Ok(()));
    }

    #[test]
    fn two_lengths_are_refused_in_either_order() {
        let (length, encoding) = ("CONTENT-LENGTH: 3\r\n", "Transfer-Encoding: chunked\r\n");
        for (first, second) in [(length, encoding), (encoding, length)] {
            let raw = format!("POST / HTTP/1.1\r\nHost: x\r\n{first}{second}\r\n");
            assert_eq!(check(&raw, &[HOST, CHUNKED]), Err(HeadFault::TwoLengths));
        }
    }

    #[test]
    fn other_faults_are_told_apart() {
        assert_eq!(check("POST / HTTP/1.1\r\nHost: x\n\r\n", &[HOST]), Err(HeadFault::BareLineFeed));
        assert_eq!(check("POST / HTTP/1.1\r\n\r\n", &[]), Err(HeadFault::Host));
        assert_eq!(check("POST / HTTP/1.1\r\n\r\n", &[HOST, HOST]), Err(HeadFault::Host));
        assert_eq!(check("", &[HOST, CHUNKED]), Err(HeadFault::PipelinedChunked));
        assert_eq!(check("POST: x\r\n\r\n", &[HOST, CHUNKED]), Err(HeadFault::PipelinedChunked));
        let gzip = ("transfer-encoding", "gzip, chunked");
        assert_eq!(check("", &[HOST, gzip]), Err(HeadFault::TransferEncoding));
        assert_eq!(check("", &[HOST]), Ok(()));
    }
}
