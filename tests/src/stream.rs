//! A streamed reply, event by event as it comes.
//!
//! Strict on purpose: an event is one `data:` line and one blank line, each event is whole UTF-8 by itself, and
//! nothing comes after `[DONE]`. Comments (`: …`) are passed over and kept. Dropping a [`Stream`] closes its connection.

use serde_json::Value;
use std::io::{BufRead, BufReader};
use ureq::{
    BodyReader,
    http::{HeaderMap, Response},
};

/// The events of a streamed reply.
pub struct Stream {
    /// The reply's headers.
    pub headers: HeaderMap,
    /// The comments that came before the last event.
    pub comments: Vec<String>,
    lines: BufReader<BodyReader<'static>>,
    done: bool,
}

impl Stream {
    pub(crate) fn new(response: Response<ureq::Body>) -> Self {
        let (head, body) = response.into_parts();
        Self { headers: head.headers, comments: Vec::new(), lines: BufReader::new(body.into_reader()), done: false }
    }

    /// Whether `[DONE]` came.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Reads the next line, which is a comment.
    #[track_caller]
    pub fn comment(&mut self) -> String {
        let comment = self.line().expect("the stream goes on");
        assert!(comment.starts_with(": "), "not a comment: {comment}");
        assert_eq!(self.line().as_deref(), Some(""), "a comment is one line");
        comment
    }

    /// All events up to `[DONE]`, which must come.
    #[track_caller]
    pub fn whole(mut self) -> Vec<Value> {
        let events: Vec<Value> = self.by_ref().collect();
        assert!(self.done, "the stream ended without [DONE] after {:?}", events.last());
        assert_eq!(self.line(), None, "something came after [DONE]");
        events
    }

    /// The text of all events up to `[DONE]`.
    #[track_caller]
    pub fn text(self) -> String {
        self.whole().iter().map(text_of).collect()
    }

    fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let read = self.lines.read_until(b'\n', &mut line).unwrap_or(0);
        let text = String::from_utf8(line).expect("every line is whole UTF-8");
        (read > 0).then(|| text.trim_end_matches(['\r', '\n']).to_owned())
    }
}

impl Iterator for Stream {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        if self.done {
            return None;
        }
        let line = loop {
            let line = self.line()?;
            match line.starts_with(':') {
                true => self.comments.push(line),
                false if line.is_empty() => {}
                false => break line,
            }
        };
        let data = line.strip_prefix("data: ").unwrap_or_else(|| panic!("not an event: {line}"));
        self.done = data == "[DONE]";
        assert_eq!(self.line().as_deref(), Some(""), "an event is one line");
        (!self.done).then(|| serde_json::from_str(data).unwrap_or_else(|error| panic!("{error}: {data}")))
    }
}

/// The text that one event of a chat or a completion adds.
pub fn text_of(event: &Value) -> String {
    let choice = &event["choices"][0];
    choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or_default().to_owned()
}
