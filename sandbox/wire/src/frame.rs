//! Frames on a stream socket.
//!
//! ```text
//!  0        4                4 + length
//!  ┌────────┬────────────────┐
//!  │ length │ postcard bytes │   length: u32 little-endian, of the bytes that follow; 1 ..= limit
//!  └────────┴────────────────┘
//! ```
//!
//! Invariants: a length above the limit is refused before a byte of it is stored; a [`Decoder`] that returned an error
//! stays broken, since the border of the next frame is lost.

use serde::{Serialize, de::DeserializeOwned};

/// Longest frame to a runner: a request body of the greatest size a manifest allows, and its fields.
pub const TO_RUNNER_BYTES_MAX: usize = 32 << 20;
/// Longest frame from a runner: a rendered prompt or an embedding.
pub const FROM_RUNNER_BYTES_MAX: usize = 32 << 20;

const HEADER_BYTES: usize = 4;

/// What was wrong with the bytes of a peer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header announces a frame that nobody may send.
    #[error("frame of {length} bytes; the limit is {limit}")]
    TooLong {
        /// Bytes announced.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes are not a message.
    #[error("frame of {length} bytes is not a message: {reason}")]
    Malformed {
        /// Bytes in the frame.
        length: usize,
        /// What the deserializer met.
        reason: String,
    },
}

/// Appends `message` to `out` as one frame.
///
/// # Errors
/// [`FrameError::TooLong`] when it takes more than `limit` bytes; `out` is then as before.
pub fn encode<M: Serialize>(message: &M, limit: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let mut bytes = postcard::to_extend(message, std::mem::take(out))
        .map_err(|error| FrameError::Malformed { length: 0, reason: error.to_string() })?;
    let length = bytes.len() - start - HEADER_BYTES;
    if length > limit {
        bytes.truncate(start);
        *out = bytes;
        return Err(FrameError::TooLong { length, limit });
    }
    let header = u32::try_from(length).expect("limits are below 4 GiB").to_le_bytes();
    bytes[start..start + HEADER_BYTES].copy_from_slice(&header);
    *out = bytes;
    Ok(())
}

/// Turns a stream of bytes, cut anywhere, back into messages.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
    limit: usize,
    broken: Option<FrameError>,
}

impl Decoder {
    /// A decoder that takes frames of up to `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), consumed: 0, limit, broken: None }
    }

    /// Takes bytes as they came from the socket.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..std::mem::take(&mut self.consumed));
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` when more bytes are needed.
    ///
    /// # Errors
    /// The peer broke the protocol; every later call says so again.
    pub fn next_message<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let decoded = self.decode();
        if let Err(error) = &decoded {
            self.broken = Some(error.clone());
        }
        decoded
    }

    /// Whether bytes of an unfinished frame are held: an end of the stream now is a cut.
    pub fn is_mid_frame(&self) -> bool {
        self.consumed < self.buffer.len()
    }

    fn decode<M: DeserializeOwned>(&mut self) -> Result<Option<M>, FrameError> {
        let pending = &self.buffer[self.consumed..];
        let Some((header, rest)) = pending.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let length = u32::from_le_bytes(*header) as usize;
        if length == 0 || length > self.limit {
            return Err(FrameError::TooLong { length, limit: self.limit });
        }
        let Some(frame) = rest.get(..length) else { return Ok(None) };
        let malformed = |reason: String| FrameError::Malformed { length, reason };
        let (message, tail) = postcard::take_from_bytes(frame).map_err(|error| malformed(error.to_string()))?;
        if !tail.is_empty() {
            return Err(malformed(format!("{} bytes left over", tail.len())));
        }
        self.consumed += HEADER_BYTES + length;
        Ok(Some(message))
    }
}

/// Encodes a message that travels whole in a packet of its own, without a header.
///
/// # Errors
/// [`FrameError::TooLong`] above `limit` bytes.
pub fn encode_packet<M: Serialize>(message: &M, limit: usize) -> Result<Vec<u8>, FrameError> {
    let bytes =
        postcard::to_stdvec(message).map_err(|error| FrameError::Malformed { length: 0, reason: error.to_string() })?;
    if bytes.len() > limit { Err(FrameError::TooLong { length: bytes.len(), limit }) } else { Ok(bytes) }
}

/// Decodes a packet made by [`encode_packet`].
///
/// # Errors
/// [`FrameError::Malformed`] when the bytes are not exactly one message.
pub fn decode_packet<M: DeserializeOwned>(packet: &[u8]) -> Result<M, FrameError> {
    let malformed = |reason: String| FrameError::Malformed { length: packet.len(), reason };
    match postcard::take_from_bytes(packet) {
        Ok((message, [])) => Ok(message),
        Ok((_, tail)) => Err(malformed(format!("{} bytes left over", tail.len()))),
        Err(error) => Err(malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::{FromRunner, Text};
    use proptest::prelude::*;

    fn text(id: u64, text: &str) -> FromRunner {
        FromRunner::Text { id, text: Text { text: text.to_owned(), tokens: 1, logprobs: Vec::new() } }
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(texts in prop::collection::vec(".{0,40}", 0..8), cut in 1usize..20) {
            let sent: Vec<_> = texts.iter().enumerate().map(|(id, t)| text(id as u64, t)).collect();
            let mut bytes = Vec::new();
            for message in &sent {
                encode(message, 1 << 10, &mut bytes).unwrap();
            }
            let mut decoder = Decoder::new(1 << 10);
            let mut received = Vec::new();
            for piece in bytes.chunks(cut) {
                decoder.push(piece);
                while let Some(message) = decoder.next_message::<FromRunner>().unwrap() {
                    received.push(message);
                }
            }
            prop_assert_eq!(sent, received);
            prop_assert!(!decoder.is_mid_frame());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::new(64);
            decoder.push(&bytes);
            while let Ok(Some(_)) = decoder.next_message::<FromRunner>() {}
            let _ = decode_packet::<crate::warden::Request>(&bytes);
        }
    }

    #[test]
    fn a_broken_decoder_stays_broken() {
        let mut decoder = Decoder::new(16);
        decoder.push(&u32::MAX.to_le_bytes());
        let error = decoder.next_message::<FromRunner>().unwrap_err();
        assert_eq!(error, FrameError::TooLong { length: u32::MAX as usize, limit: 16 });
        let mut good = Vec::new();
        encode(&text(1, "x"), 16, &mut good).unwrap();
        decoder.push(&good);
        assert_eq!(decoder.next_message::<FromRunner>().unwrap_err(), error);
    }

    #[test]
    fn a_message_above_the_limit_is_not_sent() {
        let mut out = b"kept".to_vec();
        assert!(encode(&text(1, &"x".repeat(100)), 50, &mut out).is_err());
        assert_eq!(out, b"kept");
    }
}
