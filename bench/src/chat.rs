//! One streamed chat, and when its parts came.

use crate::{
    error::Error,
    http_client::{Connection, Server, in_thread},
};
use bytes::Bytes;
use http::HeaderMap;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::json;
use std::{
    fmt::Display,
    time::{Duration, Instant, SystemTime},
};

/// The first function's name to Ember; llama-server has one model, and does not care.
pub(crate) const MODEL: &str = "bench";

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Chat {
    /// The API's `model`.
    pub(crate) model: &'static str,
    pub(crate) system: Option<&'static str>,
    pub(crate) prompt: String,
    pub(crate) tokens: u32,
}

/// An answer, and when its parts came.
pub(crate) struct Answer {
    /// Before connecting.
    pub(crate) began: Instant,
    /// Before the request was sent on the open connection, by both clocks.
    pub(crate) asked: Instant,
    pub(crate) asked_at: SystemTime,
    /// The reply's head was there.
    pub(crate) head: Instant,
    /// Each piece of text was there.
    times: Vec<Instant>,
    headers: HeaderMap,
    usage: Option<Usage>,
    /// The code of the error that ended the stream.
    pub(crate) error: Option<String>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<Told>,
}

#[derive(Deserialize)]
struct Told {
    code: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    /// Ember's receipt.
    ember: Option<Receipt>,
}

/// Where the time went, as Ember says.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Receipt {
    pub(crate) queue_ms: f64,
    pub(crate) wake_ms: f64,
    pub(crate) prefill_ms: f64,
}

impl Chat {
    /// Asks on a connection of its own, and waits for the whole answer.
    pub(crate) fn ask_in_thread(&self, server: &Server) -> Result<Answer, Error> {
        in_thread(None, async || self.ask(server).await)
    }

    pub(crate) async fn ask(&self, server: &Server) -> Result<Answer, Error> {
        let began = Instant::now();
        let mut connection = server.connect().await?;
        self.ask_on(&mut connection, server, began).await
    }

    /// Asks on a connection that is open, and waits for the whole answer; also gives the times between its pieces, ms.
    pub(crate) async fn ask_over(
        &self,
        mut connection: Connection,
        server: &Server,
    ) -> Result<(Answer, Vec<f64>), Error> {
        let answer = self.ask_on(&mut connection, server, Instant::now()).await?;
        let gaps = answer.times.windows(2).map(|pair| ms(pair[1] - pair[0])).collect();
        Ok((answer, gaps))
    }

    async fn ask_on(&self, connection: &mut Connection, server: &Server, began: Instant) -> Result<Answer, Error> {
        let request = Bytes::from(self.request());
        let (asked, asked_at) = (Instant::now(), SystemTime::now());
        let reply = connection.post("/v1/chat/completions", request).await?;
        let headers = reply.headers().clone();
        let mut answer = Answer {
            began,
            asked,
            asked_at,
            head: Instant::now(),
            times: Vec::new(),
            headers,
            usage: None,
            error: None,
        };
        let (mut body, mut unread) = (reply.into_body(), Vec::new());
        while let Some(frame) = body.frame().await {
            let now = Instant::now();
            unread.extend_from_slice(&frame.map_err(|error| server.failed(error))?.into_data().unwrap_or_default());
            while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = unread.drain(..=end).collect();
                answer.line(line.trim_ascii_end(), now);
            }
        }
        Ok(answer)
    }

    fn request(&self) -> String {
        let system = self.system.map(|content| json!({ "role": "system", "content": content }));
        let user = json!({ "role": "user", "content": self.prompt });
        let request = json!({
            "model": self.model,
            "messages": system.into_iter().chain([user]).collect::<Vec<_>>(),
            "max_tokens": self.tokens,
            "temperature": 0,
            // Both sides compute every prompt in full, also one that was asked before.
            "cache_prompt": false,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        request.to_string()
    }
}

impl Answer {
    /// Takes one line of the stream, read at `now`.
    fn line(&mut self, line: &[u8], now: Instant) {
        let Some(data) = line.strip_prefix(b"data: ") else { return };
        let Ok(chunk) = serde_json::from_slice::<Chunk>(data) else { return };
        let has_text = |choice: &Choice| choice.delta.content.as_ref().is_some_and(|text| !text.is_empty());
        if chunk.choices.iter().any(has_text) {
            self.times.push(now);
        }
        self.usage = chunk.usage.or(self.usage.take());
        self.error = chunk.error.and_then(|told| told.code).or(self.error.take());
    }

    /// From `since` to the first piece of text.
    pub(crate) fn first_piece_ms(&self, since: Instant) -> Result<f64, Error> {
        let first = self.times.first().ok_or_else(|| Error::setup("an answer without text"))?;
        Ok(ms(*first - since))
    }

    /// Tokens a second between the first and the last piece; fewer tokens than `min` make no rate.
    pub(crate) fn tokens_per_second(&self, min: u32) -> Result<f64, Error> {
        match (&self.times[..], self.completion_tokens()) {
            ([first, .., last], tokens) if tokens >= min && last > first => {
                Ok(f64::from(tokens - 1) / (*last - *first).as_secs_f64())
            }
            (_, tokens) => Err(Error::setup(format!("a stream of {tokens} tokens makes no rate"))),
        }
    }

    pub(crate) fn completion_tokens(&self) -> u32 {
        self.usage.as_ref().map_or(0, |usage| usage.completion_tokens)
    }

    pub(crate) fn prompt_tokens(&self) -> u32 {
        self.usage.as_ref().map_or(0, |usage| usage.prompt_tokens)
    }

    /// Ember's receipt, provided that the function was found in this tier.
    pub(crate) fn receipt(&self, tier: impl Display) -> Result<Receipt, Error> {
        let (wanted, found) = (tier.to_string(), self.headers.get("x-ember-tier"));
        if found.is_none_or(|found| *found != *wanted) {
            return Err(Error::setup(format!("the function was to be {wanted}, and was {found:?}")));
        }
        let receipt = self.usage.as_ref().and_then(|usage| usage.ember);
        receipt.ok_or_else(|| Error::setup("an answer of Ember without a receipt"))
    }
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(start: Instant) -> Answer {
        Answer {
            began: start,
            asked: start,
            asked_at: SystemTime::now(),
            head: start,
            times: Vec::new(),
            headers: HeaderMap::new(),
            usage: None,
            error: None,
        }
    }

    #[test]
    fn pieces_are_timed_and_counted() {
        let start = Instant::now();
        let mut answer = answer(start);
        let mut at = |ms, line: &str| answer.line(line.as_bytes(), start + Duration::from_millis(ms));
        at(0, r#"data: {"choices":[{"delta":{"role":"assistant","content":""}}],"usage":null}"#);
        at(100, r#"data: {"choices":[{"delta":{"content":"a"}}]}"#);
        at(300, r#"data: {"choices":[{"delta":{"content":"b"}}]}"#);
        at(1_100, r#"data: {"choices":[{"delta":{"content":"c"}}]}"#);
        at(1_200, r#"data: {"choices":[{"delta":{}}]}"#);
        at(1_200, r#"data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":101}}"#);
        at(1_300, "data: [DONE]");
        assert_eq!(answer.error, None);
        assert!((answer.tokens_per_second(16).unwrap() - 100.0).abs() < 1e-9);
        assert!((answer.first_piece_ms(start).unwrap() - 100.0).abs() < 1e-9);
        assert_eq!((answer.prompt_tokens(), answer.completion_tokens()), (7, 101));
        assert!(answer.tokens_per_second(102).is_err());
    }

    #[test]
    fn a_receipt_is_of_the_tier_that_was_meant() {
        let start = Instant::now();
        let mut answer = answer(start);
        let receipt = r#"{"tier":"parked","queue_ms":0.5,"wake_ms":3.5,"prefill_ms":20.0}"#;
        let usage = format!(r#"data: {{"usage":{{"prompt_tokens":1,"completion_tokens":1,"ember":{receipt}}}}}"#);
        answer.line(usage.as_bytes(), start);
        answer.headers.insert("x-ember-tier", http::HeaderValue::from_static("parked"));
        assert_eq!(answer.receipt("parked").unwrap().wake_ms, 3.5);
        assert!(answer.receipt("stored").is_err());
        assert!(answer.first_piece_ms(start).is_err());
    }
}
