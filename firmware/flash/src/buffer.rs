//! Memory that O_DIRECT takes: a vector with room to begin at a multiple of 4096.

use std::ops::{Deref, DerefMut};

/// What addresses, offsets and lengths of direct writes are multiples of: no disk asks for more.
pub(crate) const ALIGNMENT: usize = 4096;

/// Aligned bytes.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// `length` zeros.
    pub(crate) fn new(length: usize) -> Self {
        let bytes = vec![0; length + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, length }
    }

    /// The vector, for the ring, and where in it this begins.
    pub(crate) fn into_parts(self) -> (Vec<u8>, usize) {
        (self.bytes, self.start)
    }

    /// Of the vector that [`Buffer::into_parts`] gave: it never moved.
    pub(crate) fn from_parts(bytes: Vec<u8>, start: usize) -> Self {
        let length = bytes.len() - ALIGNMENT;
        Self { bytes, start, length }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_aligned_and_stays_so() {
        let mut buffer = Buffer::new(1 << 16);
        buffer[65_535] = 7;
        let again = {
            let (bytes, start) = buffer.into_parts();
            Buffer::from_parts(bytes, start)
        };
        assert_eq!((again.len(), again[65_535], again.as_ptr().align_offset(ALIGNMENT)), (1 << 16, 7, 0));
    }
}
