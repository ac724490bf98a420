//! Replies in one piece: `chat.completion` and `text_completion`.

use crate::{
    ApiError, Shape, Timings, Usage,
    logprob::{ChatLogprobs, TextLogprobs},
    tool::{Made, Offer, OpenAiCall, Shown, Speech},
};
use appliance_types::RequestId;
use sandbox_wire::runner::{FinishReason, Text, TokenLogprob, TopLogprob};
use serde::Serialize;
use std::sync::Arc;

/// What every reply, and every piece of one, begins with.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// The request.
    pub request: RequestId,
    /// When it came, seconds since the Unix epoch.
    pub created_unix_s: u64,
    /// The function called.
    pub model: &'a str,
}

impl Head<'_> {
    /// The reply's `id`: the request's, under the prefix that OpenAI's clients know.
    pub(crate) fn id(&self, shape: Shape) -> String {
        format!("{}-{}", shape.id_prefix(), self.number())
    }

    /// The request without our prefix.
    pub(crate) fn number(&self) -> String {
        self.request.to_string().trim_start_matches("req-").to_owned()
    }
}

/// Most memory that an answer in one piece may take; a runner that is not bounded by its own honesty is by this.
pub const ANSWER_BYTES_MAX: usize = 16 << 20;

/// An answer, put together from its pieces.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    speech: Speech,
    calls: Vec<Made>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    bytes: usize,
    finish_reason: Option<&'static str>,
}

impl Answer {
    /// An answer in which this may be called.
    pub fn offered(offer: Option<Arc<Offer>>) -> Self {
        Self { speech: Speech::new(offer), ..Self::default() }
    }

    /// Takes the next piece.
    ///
    /// # Errors
    /// 422: with it the answer would take more than [`ANSWER_BYTES_MAX`].
    pub fn push(&mut self, piece: Text) -> Result<(), ApiError> {
        self.bytes += piece.text.len() + piece.logprobs.iter().map(logprob_bytes).sum::<usize>();
        if self.bytes > ANSWER_BYTES_MAX {
            let limit = ANSWER_BYTES_MAX >> 20;
            return Err(ApiError::unprocessable(format!("the answer takes more than {limit} MiB; ask for a stream")));
        }
        let shown = self.speech.push(piece);
        self.show(shown);
        Ok(())
    }

    fn show(&mut self, shown: Vec<Shown>) {
        for shown in shown {
            match shown {
                Shown::Text(piece) => {
                    self.text.push_str(&piece.text);
                    self.logprobs.extend(piece.logprobs);
                }
                Shown::Call(_, call) => self.calls.push(call),
            }
        }
    }

    /// Notes how the answer ended, in the words of [`finish_name`].
    pub fn finish(&mut self, finish_reason: &'static str) {
        let rest = self.speech.finish();
        self.show(rest);
        self.finish_reason = Some(self.speech.finish_name(finish_reason));
    }

    /// The calls that it made.
    pub(crate) fn calls(&self) -> &[Made] {
        &self.calls
    }

    /// The text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Log-probabilities of its tokens, where they were asked for.
    pub(crate) fn logprobs(&self) -> &[TokenLogprob] {
        &self.logprobs
    }

    /// How it ended.
    pub(crate) fn finish_reason(&self) -> Option<&'static str> {
        self.finish_reason
    }
}

/// OpenAI's word for how an answer ended.
///
/// # Errors
/// It was cut, so there is no answer: 504 for the deadline of `limit_ms`, 503 for a cancellation that was not the
/// client's.
pub fn finish_name(reason: FinishReason, limit_ms: u64) -> Result<&'static str, ApiError> {
    match reason {
        FinishReason::Stop => Ok("stop"),
        FinishReason::Length => Ok("length"),
        FinishReason::Deadline => Err(ApiError::deadline_exceeded(limit_ms)),
        FinishReason::Cancelled => Err(ApiError::unavailable("the request was cancelled here; try again", 1)),
    }
}

/// The body of a reply of `shape`, with one choice for each of `answers`.
pub(crate) fn reply(shape: Shape, head: &Head<'_>, answers: &[Answer], usage: &Usage, timings: &Timings) -> Vec<u8> {
    let number = head.number();
    let choices = answers.iter().enumerate().map(|(index, answer)| choice(shape, index, answer, &number)).collect();
    let reply = Reply {
        id: head.id(shape),
        object: shape.object(),
        created: head.created_unix_s,
        model: head.model,
        choices,
        usage,
        timings,
    };
    let mut body = Vec::new();
    write_json(&reply, &mut body);
    body
}

/// Appends `value` as JSON.
pub(crate) fn write_json(value: &(impl Serialize + ?Sized), out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("a Vec takes any bytes, and our keys are strings");
}

fn logprob_bytes(entry: &TokenLogprob) -> usize {
    let top: usize = entry.top.iter().map(|top| size_of::<TopLogprob>() + top.bytes.len()).sum();
    size_of::<TokenLogprob>() + entry.bytes.len() + top
}

#[derive(Serialize)]
struct Reply<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<Choice<'a>>,
    usage: &'a Usage,
    timings: &'a Timings,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: usize,
    #[serde(flatten)]
    content: Content<'a>,
    finish_reason: Option<&'static str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content<'a> {
    Chat { message: Message<'a>, logprobs: Option<ChatLogprobs<'a>> },
    Text { text: &'a str, logprobs: Option<TextLogprobs<'a>> },
}

#[derive(Serialize)]
struct Message<'a> {
    role: &'static str,
    /// `null` where there are only calls.
    content: Option<&'a str>,
    refusal: (),
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<OpenAiCall<'a>>,
}

fn choice<'a>(shape: Shape, index: usize, answer: &'a Answer, number: &str) -> Choice<'a> {
    let Answer { text, logprobs, finish_reason, calls, .. } = answer;
    let logprobs = (!logprobs.is_empty()).then_some(&logprobs[..]);
    let content = match shape {
        Shape::Chat => Content::Chat {
            message: Message {
                role: "assistant",
                content: Some(text.as_str()).filter(|text| calls.is_empty() || !text.is_empty()),
                refusal: (),
                tool_calls: calls.iter().enumerate().map(|(place, call)| call.openai(number, place)).collect(),
            },
            logprobs: logprobs.map(ChatLogprobs::new),
        },
        Shape::Text => Content::Text { text, logprobs: logprobs.map(|entries| TextLogprobs::new(entries, &mut 0)) },
    };
    Choice { index, content, finish_reason: *finish_reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{logprob::tests::two, receipt::tests::record};
    use appliance_price::Prices;
    use serde_json::{Value, json};

    fn answer(logprobs: Vec<TokenLogprob>) -> Answer {
        let mut answer = Answer::default();
        answer.push(Text { text: "h".to_owned(), tokens: 1, logprobs }).unwrap();
        answer.push(Text { text: "é".to_owned(), tokens: 1, logprobs: Vec::new() }).unwrap();
        answer.finish("length");
        answer
    }

    fn value(reply: impl Fn(&Head<'_>, &Usage, &Timings) -> Vec<u8>) -> Value {
        let head = Head { request: record().request, created_unix_s: 7, model: "m" };
        let usage = Usage::from_record(&record(), &Prices::default());
        let mut value: Value = serde_json::from_slice(&reply(&head, &usage, &Timings::from_record(&record()))).unwrap();
        assert_eq!(value["usage"]["ember"]["billed_ms"], 421);
        assert_eq!(value["timings"]["cache_n"], 10);
        value.as_object_mut().unwrap().retain(|key, _| key != "usage" && key != "timings");
        value
    }

    #[test]
    fn a_chats_reply() {
        let reply = value(|head, usage, timings| reply(Shape::Chat, head, &[answer(Vec::new())], usage, timings));
        let message = json!({"role": "assistant", "content": "hé", "refusal": null});
        let expected = json!({
            "id": "chatcmpl-00000000000000000000000000000abc", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [{"index": 0, "message": message, "logprobs": null, "finish_reason": "length"}],
        });
        assert_eq!(reply, expected);
    }

    #[test]
    fn a_completions_reply() {
        let answers = [answer(Vec::new()), answer(two())];
        let reply = value(|head, usage, timings| reply(Shape::Text, head, &answers, usage, timings));
        assert_eq!(reply["id"], "cmpl-00000000000000000000000000000abc");
        assert_eq!(reply["object"], "text_completion");
        let first = json!({"index": 0, "text": "hé", "logprobs": null, "finish_reason": "length"});
        assert_eq!(reply["choices"][0], first);
        assert_eq!(reply["choices"][1]["index"], 1);
        assert_eq!(reply["choices"][1]["logprobs"]["text_offset"], json!([0, 2]));
    }

    #[test]
    fn an_answer_has_an_end() {
        let mut answer = Answer::default();
        let piece = |logprobs| Text { text: "x".repeat(1 << 20), tokens: 1, logprobs };
        for _ in 0..16 {
            answer.push(piece(Vec::new())).unwrap();
        }
        assert_eq!(answer.text().len(), ANSWER_BYTES_MAX);
        assert_eq!(answer.push(piece(two())).unwrap_err().status, 422);
        assert_eq!(answer.text().len(), ANSWER_BYTES_MAX);
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        assert_eq!(finish_name(FinishReason::Stop, 5), Ok("stop"));
        assert_eq!(finish_name(FinishReason::Length, 5), Ok("length"));
        assert_eq!(finish_name(FinishReason::Deadline, 5).unwrap_err().status, 504);
        assert_eq!(finish_name(FinishReason::Cancelled, 5).unwrap_err().status, 503);
    }
}
