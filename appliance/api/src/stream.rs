//! Replies in pieces: one server-sent event a piece.
//!
//! ```text
//!  chat:  start  (text | call)*  finish  [usage]  [DONE]        each `data: {…}` and an empty line
//!  text:         text*           finish  [usage]  [DONE]
//! ```
//!
//! A piece is a token or so, and there are many: what does not change from one to the next is put together once, and a
//! piece costs its own bytes and no allocation beyond `out`. With `include_usage` every event but the last says
//! `"usage":null`, and the last has no choices, as OpenAI's clients expect.

use crate::{
    Head, Timings, Usage,
    logprob::{ChatLogprobs, TextLogprobs},
    reply::write_json,
    tool::{Made, Offer, OpenAiCall, Shown, Speech},
};
use sandbox_wire::runner::{Text, TokenLogprob};
use serde::Serialize;
use std::sync::Arc;

/// Which of OpenAI's two shapes a reply has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// That of `/v1/chat/completions`.
    Chat,
    /// That of `/v1/completions`.
    Text,
}

impl Shape {
    pub(crate) const fn id_prefix(self) -> &'static str {
        match self {
            Self::Chat => "chatcmpl",
            Self::Text => "cmpl",
        }
    }

    pub(crate) const fn object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion",
            Self::Text => "text_completion",
        }
    }

    const fn chunk_object(self) -> &'static str {
        match self {
            Self::Chat => "chat.completion.chunk",
            Self::Text => "text_completion",
        }
    }
}

/// Writes the events of one choice of a reply.
#[derive(Clone, Debug)]
pub struct ChunkWriter {
    shape: Shape,
    include_usage: bool,
    speech: Speech,
    /// What tells calls of this answer from others'.
    number: String,
    /// `data: {"id":…,"choices":[`
    head: Vec<u8>,
    /// The same and `{"index":N,`.
    open: Vec<u8>,
    /// Characters written so far: where the next token stands.
    offset: usize,
}

impl ChunkWriter {
    /// A writer for the choice `index` of the reply that `head` begins.
    pub fn new(shape: Shape, head: &Head<'_>, index: usize, include_usage: bool, offer: Option<Arc<Offer>>) -> Self {
        let mut bytes = b"data: {\"id\":".to_vec();
        write_json(&head.id(shape), &mut bytes);
        let object = shape.chunk_object();
        bytes.extend_from_slice(
            format!(",\"object\":\"{object}\",\"created\":{},\"model\":", head.created_unix_s).as_bytes(),
        );
        write_json(head.model, &mut bytes);
        bytes.extend_from_slice(b",\"choices\":[");
        let mut open = bytes.clone();
        open.extend_from_slice(format!("{{\"index\":{index},").as_bytes());
        let (speech, number) = (Speech::new(offer), head.number());
        Self { shape, include_usage, speech, number, head: bytes, open, offset: 0 }
    }

    /// Appends the event that says who speaks; a text completion has none.
    pub fn start(&self, out: &mut Vec<u8>) {
        if self.shape == Shape::Chat {
            out.extend_from_slice(&self.open);
            out.extend_from_slice(b"\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":null");
            self.unfinished(out);
        }
    }

    /// Appends the events of a piece; none where it may become a call.
    pub fn text(&mut self, piece: Text, out: &mut Vec<u8>) {
        match self.speech.is_plain() {
            true => self.write_text(&piece, out),
            false => {
                let shown = self.speech.push(piece);
                self.show(shown, out);
            }
        }
    }

    fn show(&mut self, shown: Vec<Shown>, out: &mut Vec<u8>) {
        for shown in shown {
            match shown {
                Shown::Text(piece) => self.write_text(&piece, out),
                Shown::Call(place, call) => self.write_call(place, &call, out),
            }
        }
    }

    fn write_call(&self, place: usize, call: &Made, out: &mut Vec<u8>) {
        #[derive(Serialize)]
        struct Indexed<'a> {
            index: usize,
            #[serde(flatten)]
            call: OpenAiCall<'a>,
        }
        out.extend_from_slice(&self.open);
        out.extend_from_slice(b"\"delta\":{\"tool_calls\":[");
        write_json(&Indexed { index: place, call: call.openai(&self.number, place) }, out);
        out.extend_from_slice(b"]},\"logprobs\":null");
        self.unfinished(out);
    }

    fn write_text(&mut self, piece: &Text, out: &mut Vec<u8>) {
        let (before, after): (&[u8], &[u8]) = match self.shape {
            Shape::Chat => (b"\"delta\":{\"content\":", b"},\"logprobs\":"),
            Shape::Text => (b"\"text\":", b",\"logprobs\":"),
        };
        out.extend_from_slice(&self.open);
        out.extend_from_slice(before);
        write_json(&piece.text, out);
        out.extend_from_slice(after);
        self.logprobs(&piece.logprobs, out);
        self.unfinished(out);
    }

    /// Appends the event that says how the answer ended, in the words of [`crate::finish_name`].
    pub fn finish(&mut self, finish_reason: &'static str, timings: &Timings, out: &mut Vec<u8>) {
        let rest = self.speech.finish();
        self.show(rest, out);
        let finish_reason = self.speech.finish_name(finish_reason);
        let empty: &[u8] = match self.shape {
            Shape::Chat => b"\"delta\":{}",
            Shape::Text => b"\"text\":\"\"",
        };
        out.extend_from_slice(&self.open);
        out.extend_from_slice(empty);
        out.extend_from_slice(b",\"logprobs\":null,\"finish_reason\":");
        write_json(finish_reason, out);
        out.extend_from_slice(b"}],\"timings\":");
        write_json(timings, out);
        self.close(out);
    }

    /// Appends the event of usage, if it was asked for. Once a reply, whatever the number of choices.
    pub fn usage(&self, usage: &Usage, out: &mut Vec<u8>) {
        if self.include_usage {
            out.extend_from_slice(&self.head);
            out.extend_from_slice(b"],\"usage\":");
            write_json(usage, out);
            out.extend_from_slice(b"}\n\n");
        }
    }

    fn logprobs(&mut self, entries: &[TokenLogprob], out: &mut Vec<u8>) {
        match (self.shape, entries) {
            (_, []) => out.extend_from_slice(b"null"),
            (Shape::Chat, entries) => write_json(&ChatLogprobs::new(entries), out),
            (Shape::Text, entries) => write_json(&TextLogprobs::new(entries, &mut self.offset), out),
        }
    }

    fn unfinished(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"finish_reason\":null}]");
        self.close(out);
    }

    fn close(&self, out: &mut Vec<u8>) {
        let end: &[u8] = if self.include_usage { b",\"usage\":null}\n\n" } else { b"}\n\n" };
        out.extend_from_slice(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{logprob::tests::two, receipt::tests::record};
    use appliance_price::Prices;
    use proptest::prelude::*;
    use serde_json::Value;

    fn head() -> Head<'static> {
        Head { request: record().request, created_unix_s: 7, model: "a\"b" }
    }

    fn piece(text: &str) -> Text {
        Text { text: text.to_owned(), tokens: 1, logprobs: Vec::new() }
    }

    /// The JSON of each event; the text must be made of whole events.
    fn events(stream: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(stream).unwrap();
        let event = |event: &str| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        text.strip_suffix("\n\n").unwrap().split("\n\n").map(event).collect()
    }

    fn whole(shape: Shape, include_usage: bool) -> Vec<Value> {
        let mut writer = ChunkWriter::new(shape, &head(), 0, include_usage, None);
        let mut out = Vec::new();
        writer.start(&mut out);
        writer.text(piece("hé\n\n"), &mut out);
        writer.finish("stop", &Timings::from_record(&record()), &mut out);
        writer.usage(&Usage::from_record(&record(), &Prices::default()), &mut out);
        events(&out)
    }

    #[test]
    fn a_chats_stream() {
        let events = whole(Shape::Chat, true);
        let [start, text, finish, usage] = &events[..] else { panic!("{events:?}") };
        let expected = serde_json::json!({
            "id": "chatcmpl-00000000000000000000000000000abc", "object": "chat.completion.chunk", "created": 7,
            "model": "a\"b", "usage": null,
            "choices": [{"index": 0, "delta": {"content": "hé\n\n"}, "logprobs": null, "finish_reason": null}],
        });
        assert_eq!(text, &expected);
        assert_eq!(start["choices"][0]["delta"], serde_json::json!({"role": "assistant", "content": ""}));
        assert_eq!(finish["choices"][0]["finish_reason"], "stop");
        assert_eq!(finish["timings"]["predicted_n"], 60);
        assert_eq!(finish["usage"], Value::Null);
        assert_eq!(usage["choices"], serde_json::json!([]));
        assert_eq!(usage["usage"]["ember"]["tier"], "cold");
    }

    #[test]
    fn a_completions_stream() {
        let events = whole(Shape::Text, false);
        let [text, finish] = &events[..] else { panic!("{events:?}") };
        let expected = serde_json::json!({
            "id": "cmpl-00000000000000000000000000000abc", "object": "text_completion", "created": 7, "model": "a\"b",
            "choices": [{"index": 0, "text": "hé\n\n", "logprobs": null, "finish_reason": null}],
        });
        assert_eq!(text, &expected);
        assert_eq!(finish["choices"][0]["text"], "");
        assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    }

    #[test]
    fn a_call_is_one_event() {
        let said = r#"<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>"#;
        let mut writer = ChunkWriter::new(Shape::Chat, &head(), 0, false, Some(Arc::new(Offer::one("f"))));
        let mut out = Vec::new();
        said.chars().for_each(|c| writer.text(piece(&c.to_string()), &mut out));
        writer.finish("stop", &Timings::from_record(&record()), &mut out);
        let events = events(&out);
        let [call, finish] = &events[..] else { panic!("{events:?}") };
        let function = serde_json::json!({"name": "f", "arguments": "{\"x\": 1}"});
        let id = "call_00000000000000000000000000000abc_0";
        let calls = serde_json::json!([{"index": 0, "id": id, "type": "function", "function": function}]);
        assert_eq!(call["choices"][0]["delta"]["tool_calls"], calls);
        assert_eq!(finish["choices"][0]["finish_reason"], "tool_calls");
    }

    #[test]
    fn log_probabilities_count_their_place() {
        let mut writer = ChunkWriter::new(Shape::Text, &head(), 3, false, None);
        let piece = Text { logprobs: two(), ..piece("hé") };
        let mut out = Vec::new();
        writer.text(piece.clone(), &mut out);
        writer.text(piece.clone(), &mut out);
        let events = events(&out);
        assert_eq!(events[1]["choices"][0]["index"], 3);
        assert_eq!(events[1]["choices"][0]["logprobs"]["text_offset"], serde_json::json!([3, 5]));
        let mut writer = ChunkWriter::new(Shape::Chat, &head(), 0, false, None);
        out.clear();
        writer.text(piece, &mut out);
        assert_eq!(self::events(&out)[0]["choices"][0]["logprobs"]["content"][1]["bytes"], serde_json::json!([169]));
    }

    proptest! {
        #[test]
        fn any_text_comes_through(texts in prop::collection::vec(any::<String>(), 0..6)) {
            let mut writer = ChunkWriter::new(Shape::Chat, &head(), 0, false, None);
            let mut out = Vec::new();
            writer.start(&mut out);
            texts.iter().for_each(|text| writer.text(piece(text), &mut out));
            let events = events(&out);
            let contents = events[1..].iter().map(|event| event["choices"][0]["delta"]["content"].as_str());
            prop_assert!(contents.eq(texts.iter().map(|text| Some(text.as_str()))));
        }
    }
}
