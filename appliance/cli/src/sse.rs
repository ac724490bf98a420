//! Server-sent events, as far as OpenAI's streams use them: the data of each event, in order.
//!
//! ```text
//!  data: {…}\n        one event; several data lines of one event are joined by \n
//!  : ping\n           a comment, skipped, as other fields are
//!  \n                 ends the event
//! ```
//! Invariants: an event is at most [`EVENT_BYTES_MAX`]; an event that the stream's end cuts off is not given.

use std::io::{self, BufRead, Read};

/// Largest event.
pub(crate) const EVENT_BYTES_MAX: usize = 1 << 20;

/// The data of each event that `reader` brings.
pub(crate) struct Events<R> {
    reader: R,
}

impl<R: BufRead> Events<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self { reader }
    }

    /// The next event's data; `None` at the end of the stream.
    pub(crate) fn next(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        while let Some(line) = self.line()? {
            match (line.is_empty(), data.take()) {
                (true, Some(data)) => return Ok(Some(data)),
                (_, before) => data = joined(before, &line)?,
            }
        }
        Ok(None)
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut line = String::new();
        let length = self.reader.by_ref().take(EVENT_BYTES_MAX as u64 + 1).read_line(&mut line)?;
        if length > EVENT_BYTES_MAX {
            return Err(too_large());
        }
        let whole = line.strip_suffix('\n').map(|line| line.trim_end_matches('\r').to_owned());
        Ok(whole)
    }
}

fn joined(data: Option<String>, line: &str) -> io::Result<Option<String>> {
    let Some(value) = line.strip_prefix("data:") else { return Ok(data) };
    let value = value.strip_prefix(' ').unwrap_or(value);
    let joined = match data {
        Some(mut data) => {
            data.push('\n');
            data.push_str(value);
            data
        }
        None => value.to_owned(),
    };
    if joined.len() > EVENT_BYTES_MAX { Err(too_large()) } else { Ok(Some(joined)) }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("an event is larger than {EVENT_BYTES_MAX} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str) -> Vec<String> {
        let mut events = Events::new(text.as_bytes());
        std::iter::from_fn(|| events.next().unwrap()).collect()
    }

    #[test]
    fn each_event_is_given_once() {
        assert_eq!(events("data: {\"a\":1}\n\ndata: [DONE]\n\n"), ["{\"a\":1}", "[DONE]"]);
        assert_eq!(events("data:x\r\n\r\n"), ["x"]);
        assert_eq!(events("data: a\ndata: b\n\n"), ["a\nb"]);
        assert_eq!(events("data:\n\n"), [""]);
    }

    #[test]
    fn comments_and_other_fields_are_skipped() {
        assert_eq!(events(": ping\n\nevent: x\nid: 1\ndata: a\nretry: 5\n\n\n\n"), ["a"]);
    }

    #[test]
    fn what_is_cut_off_is_not_given() {
        for cut in ["", "data", "data: a", "data: a\n"] {
            assert!(events(cut).is_empty(), "{cut:?}");
        }
    }

    #[test]
    fn an_endless_event_is_refused() {
        let line = format!("data: {}", "x".repeat(EVENT_BYTES_MAX + 1));
        assert!(Events::new(line.as_bytes()).next().is_err());
        let lines = "data: 0123456789\n".repeat(EVENT_BYTES_MAX / 10);
        assert!(Events::new(lines.as_bytes()).next().is_err());
    }
}
