//! Ollama's replies: whole, or a line a piece.

use crate::{
    Answer, Head, Offer, Shape, Sum,
    logprob::{self, Entry},
    receipt::Receipt,
    reply::write_json,
    tool::{Made, OllamaCall, Shown, Speech},
};
use appliance_price::calendar::rfc3339;
use appliance_types::Record;
use sandbox_wire::runner::{Text, TokenLogprob};
use serde::Serialize;
use std::{sync::Arc, time::Duration};

/// Where the time went, ns, and what was counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Stats {
    total_duration: u64,
    load_duration: u64,
    prompt_eval_count: u32,
    prompt_eval_duration: u64,
    eval_count: u32,
    eval_duration: u64,
}

impl Stats {
    fn new(record: &Record, total: Duration) -> Self {
        let ns = |us: u64| us.saturating_mul(1_000);
        Self {
            total_duration: u64::try_from(total.as_nanos()).unwrap_or(u64::MAX),
            load_duration: ns(record.wake_us),
            prompt_eval_count: record.tokens_in,
            prompt_eval_duration: ns(record.prefill_us),
            eval_count: record.tokens_out,
            eval_duration: ns(record.decode_us),
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    model: &'a str,
    created_at: &'a str,
    #[serde(flatten)]
    content: Content<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logprobs: Vec<Entry<'a>>,
    done: bool,
    #[serde(flatten)]
    end: Option<End<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content<'a> {
    Message {
        role: &'static str,
        content: &'a str,
        #[serde(skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<OllamaCall<'a>>,
    },
    Response(&'a str),
}

#[derive(Serialize)]
struct End<'a> {
    done_reason: &'static str,
    #[serde(flatten)]
    stats: Option<Stats>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ember: Option<&'a Receipt>,
}

impl<'a> End<'a> {
    fn new(done_reason: &'static str, sum: &'a Sum) -> Self {
        let stats = Some(Stats::new(&sum.record, sum.total));
        Self { done_reason, stats, ember: sum.usage.receipt.as_ref() }
    }
}

fn content<'a>(shape: Shape, text: &'a str, calls: &'a [Made]) -> Content<'a> {
    match shape {
        Shape::Chat => {
            Content::Message { role: "assistant", content: text, tool_calls: calls.iter().map(Made::ollama).collect() }
        }
        Shape::Text => Content::Response(text),
    }
}

/// The body of a reply in one piece.
pub fn reply(shape: Shape, head: &Head<'_>, answer: &Answer, sum: &Sum) -> Vec<u8> {
    let end = End::new(done_reason(answer.finish_reason().unwrap_or("stop")), sum);
    LineWriter::new(shape, head, None).body(answer.text(), answer.calls(), answer.logprobs(), Some(end))
}

/// The body of a reply to a request without a prompt; `done_reason` is `load` or `unload`.
pub fn load_reply(shape: Shape, head: &Head<'_>, done_reason: &'static str) -> Vec<u8> {
    LineWriter::new(shape, head, None).body("", &[], &[], Some(End { done_reason, stats: None, ember: None }))
}

/// Ollama has no word of its own for an answer that ended with calls.
fn done_reason(finish_reason: &'static str) -> &'static str {
    if finish_reason == "tool_calls" { "stop" } else { finish_reason }
}

/// The body of a reply of vectors.
pub fn embed_reply(model: &str, vectors: &[Vec<f32>], sum: &Sum) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        model: &'a str,
        embeddings: &'a [Vec<f32>],
        total_duration: u64,
        load_duration: u64,
        prompt_eval_count: u32,
        #[serde(skip_serializing_if = "Option::is_none")]
        ember: Option<&'a Receipt>,
    }
    let Stats { total_duration, load_duration, prompt_eval_count, .. } = Stats::new(&sum.record, sum.total);
    let ember = sum.usage.receipt.as_ref();
    let mut body = Vec::new();
    write_json(
        &Reply { model, embeddings: vectors, total_duration, load_duration, prompt_eval_count, ember },
        &mut body,
    );
    body
}

/// Writes a reply a line a piece; the last line says how it ended and what it took.
#[derive(Clone, Debug)]
pub struct LineWriter {
    shape: Shape,
    model: String,
    created_at: String,
    finish_reason: &'static str,
    speech: Speech,
}

impl LineWriter {
    /// A writer for the reply that `head` begins, in which `offer` may be called.
    pub fn new(shape: Shape, head: &Head<'_>, offer: Option<Arc<Offer>>) -> Self {
        let (model, created_at) = (head.model.to_owned(), rfc3339(head.created_unix_s));
        Self { shape, model, created_at, finish_reason: "stop", speech: Speech::new(offer) }
    }

    /// The line of a reply that waits.
    pub(crate) fn waiting(&self) -> Vec<u8> {
        let mut line = self.body("", &[], &[], None);
        line.push(b'\n');
        line
    }

    pub(crate) fn text(&mut self, piece: Text, out: &mut Vec<u8>) {
        let shown = self.speech.push(piece);
        self.show(shown, out);
    }

    pub(crate) fn finish(&mut self, finish_reason: &'static str, out: &mut Vec<u8>) {
        let rest = self.speech.finish();
        self.show(rest, out);
        self.finish_reason = finish_reason;
    }

    fn show(&self, shown: Vec<Shown>, out: &mut Vec<u8>) {
        for shown in shown {
            match shown {
                Shown::Text(Text { text, logprobs, .. }) => self.line(&text, &[], &logprobs, None, out),
                Shown::Call(_, call) => self.line("", &[call], &[], None, out),
            }
        }
    }

    pub(crate) fn end(&self, sum: &Sum, out: &mut Vec<u8>) {
        self.line("", &[], &[], Some(End::new(self.finish_reason, sum)), out);
    }

    fn line(&self, text: &str, calls: &[Made], logprobs: &[TokenLogprob], end: Option<End<'_>>, out: &mut Vec<u8>) {
        out.extend(self.body(text, calls, logprobs, end));
        out.push(b'\n');
    }

    fn body(&self, text: &str, calls: &[Made], logprobs: &[TokenLogprob], end: Option<End<'_>>) -> Vec<u8> {
        let line = Line {
            model: &self.model,
            created_at: &self.created_at,
            content: content(self.shape, text, calls),
            logprobs: logprob::entries(logprobs),
            done: end.is_some(),
            end,
        };
        let mut body = Vec::new();
        write_json(&line, &mut body);
        body
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Timings, Usage, logprob::tests::two, receipt::tests::record};
    use appliance_price::Prices;
    use serde_json::{Value, json};

    fn sum() -> Sum {
        Sum {
            usage: Usage::from_record(&record(), &Prices::default()),
            timings: Timings::from_record(&record()),
            record: record(),
            total: Duration::from_millis(500),
        }
    }

    fn head() -> Head<'static> {
        Head { request: record().request, created_unix_s: 1_764_028_800, model: "m" }
    }

    fn lines(out: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(out).unwrap();
        text.strip_suffix('\n').unwrap().split('\n').map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_stream_is_lines() {
        let mut writer = LineWriter::new(Shape::Chat, &head(), Some(Arc::new(Offer::one("f"))));
        let mut out = writer.waiting();
        writer.text(Text { text: "h\né".to_owned(), tokens: 1, logprobs: two() }, &mut out);
        let call = r#"<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#;
        writer.text(Text { text: call.to_owned(), tokens: 9, logprobs: Vec::new() }, &mut out);
        writer.finish("length", &mut out);
        writer.end(&sum(), &mut out);
        let lines = lines(&out);
        let [waiting, piece, call, end] = &lines[..] else { panic!("{lines:?}") };
        let expected = json!({"model": "m", "created_at": "2025-11-25T00:00:00Z", "done": false,
            "message": {"role": "assistant", "content": ""}});
        assert_eq!(waiting, &expected);
        assert_eq!(piece["message"]["content"], "h\né");
        let function = json!({"name": "f", "arguments": {"x": 1}});
        assert_eq!(call["message"]["tool_calls"], json!([{"function": function}]));
        assert_eq!(piece["logprobs"][0]["top_logprobs"].as_array().map(Vec::len), Some(2));
        assert_eq!((&end["done"], &end["done_reason"]), (&json!(true), &json!("length")));
        let durations = ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"]
            .map(|d| end[d].as_u64().unwrap());
        assert_eq!(durations, [500_000_000, 100_001_000, 20_000_000, 300_500_000]);
        assert_eq!((&end["prompt_eval_count"], &end["eval_count"]), (&json!(30), &json!(60)));
        assert_eq!(end["ember"]["billed_ms"], 421);
    }

    #[test]
    fn a_whole_reply_has_the_text_and_the_end() {
        let mut answer = Answer::default();
        answer.push(Text { text: "hi".to_owned(), tokens: 1, logprobs: Vec::new() }).unwrap();
        answer.finish("stop");
        let reply: Value = serde_json::from_slice(&reply(Shape::Text, &head(), &answer, &sum())).unwrap();
        assert_eq!(
            (&reply["response"], &reply["done"], &reply["eval_count"]),
            (&json!("hi"), &json!(true), &json!(60))
        );
        assert!(reply.get("message").is_none() && reply.get("logprobs").is_none());
        let load: Value = serde_json::from_slice(&load_reply(Shape::Text, &head(), "load")).unwrap();
        assert_eq!(
            (&load["response"], &load["done_reason"], load.get("eval_count")),
            (&json!(""), &json!("load"), None)
        );
    }
}
