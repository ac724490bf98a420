//! Whose words a request and its reply are in. What is asked, and what comes of it, is the same in all.
//!
//! | | OpenAI's | Ollama's |
//! |---|---|---|
//! | stream | server-sent events, a last one `[DONE]` | lines of JSON, a last one with `"done":true` |
//! | sign of life | a comment | a line without text |
//! | error | `{"error":{"message","type","param","code"}}` | `{"error":"text"}` |
//! | where the time went | `usage`, `timings` | durations in ns, and the receipt as `ember` |

use crate::{
    Answer, ApiError, ChunkWriter, Head, Offer, Shape, Timings, Usage,
    ollama::{self, LineWriter},
    reply::write_json,
    sse,
};
use appliance_types::Record;
use sandbox_wire::runner::Text;
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// A dialect. The path says which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's, which llama-server and the operator's endpoints have too.
    OpenAi,
    /// Ollama's: all below `/api/`.
    Ollama,
}

/// What a request came to, for the end of its reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Sum {
    /// Tokens, and the receipt.
    pub usage: Usage,
    /// Where the time went, as llama-server says it.
    pub timings: Timings,
    /// What was measured.
    pub record: Record,
    /// Since the request came.
    pub total: Duration,
}

impl Dialect {
    /// That of what is answered at `path`.
    pub fn of_path(path: &str) -> Self {
        if path.starts_with("/api/") { Self::Ollama } else { Self::OpenAi }
    }

    /// The body that says what is wrong.
    pub fn error_body(self, error: &ApiError) -> Vec<u8> {
        #[derive(Serialize)]
        struct Plain<'a> {
            error: &'a str,
        }
        match self {
            Self::OpenAi => error.body(),
            Self::Ollama => {
                let mut body = Vec::new();
                write_json(&Plain { error: &error.message }, &mut body);
                body
            }
        }
    }

    /// The same in a stream that has begun; nothing comes after it.
    pub fn error_piece(self, error: &ApiError) -> Vec<u8> {
        match self {
            Self::OpenAi => error.event(),
            Self::Ollama => [self.error_body(error), b"\n".to_vec()].concat(),
        }
    }

    /// `content-type` of a stream.
    pub const fn stream_type(self) -> &'static str {
        match self {
            Self::OpenAi => sse::CONTENT_TYPE_EVENTS,
            Self::Ollama => ollama::CONTENT_TYPE_LINES,
        }
    }

    /// A sign of life of a stream that waits: with `place` where in its queue, and for about how long.
    pub fn waiting(self, shape: Shape, head: &Head<'_>, place: Option<(usize, Duration)>) -> Vec<u8> {
        match (self, place) {
            (Self::Ollama, _) => LineWriter::new(shape, head, None).waiting(),
            (Self::OpenAi, Some((position, eta))) => sse::queued(position, eta.as_millis()),
            (Self::OpenAi, None) => sse::HEARTBEAT.to_vec(),
        }
    }

    /// The body of a reply in one piece, with one choice for each of `answers`; Ollama's has the first alone.
    pub fn whole(self, shape: Shape, head: &Head<'_>, answers: &[Answer], sum: &Sum) -> Vec<u8> {
        match (self, answers) {
            (Self::Ollama, [answer, ..]) => ollama::reply(shape, head, answer, sum),
            _ => crate::reply::reply(shape, head, answers, &sum.usage, &sum.timings),
        }
    }
}

/// Writes a reply in pieces.
#[derive(Clone, Debug)]
pub enum StreamWriter {
    /// OpenAI's.
    Events(ChunkWriter),
    /// Ollama's.
    Lines(LineWriter),
}

impl StreamWriter {
    /// A writer for the choice `index` of the reply that `head` begins, in which `offer` may be called; `include_usage` is
    /// OpenAI's.
    pub fn new(
        dialect: Dialect,
        shape: Shape,
        head: &Head<'_>,
        index: usize,
        include_usage: bool,
        offer: Option<Arc<Offer>>,
    ) -> Self {
        match dialect {
            Dialect::OpenAi => Self::Events(ChunkWriter::new(shape, head, index, include_usage, offer)),
            Dialect::Ollama => Self::Lines(LineWriter::new(shape, head, offer)),
        }
    }

    /// Appends what says who speaks; not all have it.
    pub fn start(&self, out: &mut Vec<u8>) {
        if let Self::Events(events) = self {
            events.start(out);
        }
    }

    /// Appends a piece.
    pub fn text(&mut self, piece: Text, out: &mut Vec<u8>) {
        match self {
            Self::Events(events) => events.text(piece, out),
            Self::Lines(lines) => lines.text(piece, out),
        }
    }

    /// Appends how the answer ended, in the words of [`crate::finish_name`]; Ollama's lines say it with the last one.
    pub fn finish(&mut self, finish_reason: &'static str, timings: &Timings, out: &mut Vec<u8>) {
        match self {
            Self::Events(events) => events.finish(finish_reason, timings, out),
            Self::Lines(lines) => lines.finish(finish_reason, out),
        }
    }

    /// Appends the end of the reply.
    pub fn end(&self, sum: &Sum, out: &mut Vec<u8>) {
        match self {
            Self::Events(events) => {
                events.usage(&sum.usage, out);
                out.extend_from_slice(sse::DONE);
            }
            Self::Lines(lines) => lines.end(sum, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_says_whose_words() {
        for (path, dialect) in [
            ("/api/chat", Dialect::Ollama),
            ("/api/no", Dialect::Ollama),
            ("/api", Dialect::OpenAi),
            ("/v1/chat/completions", Dialect::OpenAi),
        ] {
            assert_eq!(Dialect::of_path(path), dialect, "{path}");
        }
    }

    #[test]
    fn ollamas_errors_are_a_text() {
        let error = ApiError::invalid_param("options.seed", "a \"b\"");
        assert_eq!(Dialect::Ollama.error_piece(&error), b"{\"error\":\"a \\\"b\\\"\"}\n");
        assert_eq!(Dialect::OpenAi.error_body(&error), error.body());
    }
}
