//! Tools: what a chat may call, and the calls in what was said.
//!
//! ```text
//!  tools, tool_choice, parallel_tool_calls ─▶ runner::Tools ─▶ the model's template, and a grammar where a call is a must
//!
//!  text ─▶ Calls ─▶ text … call … call                     whole, or piece by piece
//!           held: what may become a call
//! ```
//!
//! A model says a call in one of two ways: between `<tool_call>` and `</tool_call>`, or, where that is all it says, as a
//! bare JSON object. What looks like a call and is none (no JSON, no tool of that name) stays text. A call is shown when it
//! is complete, so a stream has each in one piece.
//!
//! Invariant: the texts that come out are, together and with each call written as it was said, the text that went in, but
//! for blanks around calls, for what follows the first call where only one is wanted, and for a call
//! that is cut off after others.

use crate::{
    field::{Fault, Field, Kind, Object, Read},
    format::schema,
};
use sandbox_wire::runner::{Call, Generate, Text, TokenLogprob, Tool, ToolCall, Tools};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::sync::Arc;

/// Most tools of a request: OpenAI's limit.
const TOOLS_MAX: usize = 128;
/// Bytes of all tools together.
const TOOLS_BYTES_MAX: usize = 256 << 10;
/// Longest name of a tool: OpenAI's limit.
const NAME_BYTES_MAX: usize = 64;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// The tools that a chat offers; `None` where it offers none, or wants none called.
pub(crate) fn tools(body: &Object<'_>) -> Read<Option<Tools>> {
    let definitions = body.get("tools", definitions)?.unwrap_or_default();
    let parallel = body.get("parallel_tool_calls", Field::boolean)?.unwrap_or(true);
    let call = body.get("tool_choice", |choice| choose(choice, &definitions))?.unwrap_or(Some(Call::May));
    Ok(call.filter(|_| !definitions.is_empty()).map(|call| Tools { definitions, call, parallel }))
}

/// Tools, each as it was sent.
pub(crate) fn definitions(field: Field<'_>) -> Read<Vec<Tool>> {
    let tools = field.list(tool)?;
    if tools.len() > TOOLS_MAX {
        return Err(Fault::here(format!("{} of them; the most is {TOOLS_MAX}", tools.len())));
    }
    if field.text().len() > TOOLS_BYTES_MAX {
        return Err(Fault::here(format!("{} bytes; the most is {TOOLS_BYTES_MAX}", field.text().len())));
    }
    for (at, tool) in tools.iter().enumerate() {
        if tools[..at].iter().any(|before| before.name == tool.name) {
            let twice = format!("there are two tools named `{}`", tool.name);
            return Err(Fault::here(twice).within(&format!("[{at}].function.name")));
        }
    }
    Ok(tools)
}

fn tool(field: Field<'_>) -> Read<Tool> {
    let object = field.object()?;
    object.get("type", function_type)?;
    object.require("function", |function| {
        let object = function.object()?;
        object.get("description", Field::cow)?;
        let parameters = object.get("parameters", schema)?;
        Ok(Tool { name: object.require("name", name)?, parameters, definition: field.text().to_owned() })
    })
}

fn function_type(field: Field<'_>) -> Read<()> {
    match &*field.cow()? {
        "function" => Ok(()),
        other => Err(Fault::here(format!("only `function` is supported, got `{}`", other.escape_debug()))),
    }
}

fn name(field: Field<'_>) -> Read<String> {
    let name = field.string()?;
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_word) {
        true => Ok(name),
        false => Err(Fault::here(format!("expected 1 to {NAME_BYTES_MAX} letters, digits, `_` or `-`"))),
    }
}

/// `None` is that no tool is called.
fn choose(field: Field<'_>, tools: &[Tool]) -> Read<Option<Call>> {
    let must = |call: Call| match tools {
        [] => Err(Fault::here("only together with `tools`")),
        _ => Ok(Some(call)),
    };
    if field.kind() == Kind::String {
        return match &*field.cow()? {
            "none" => Ok(None),
            "auto" => Ok(Some(Call::May)),
            "required" => must(Call::Must),
            other => Err(Fault::here(format!("`{}` is none of none, auto, required", other.escape_debug()))),
        };
    }
    let object = field.object().map_err(|_| field.expected("none, auto, required, or a function"))?;
    object.require("type", function_type)?;
    let name = object.require("function", |function| function.object()?.require("name", Field::string))?;
    match tools.iter().any(|tool| tool.name == name) {
        true => must(Call::Named(name)),
        false => {
            Err(Fault::here(format!("`{}` is no tool of this request", name.escape_debug())).within("function.name"))
        }
    }
}

/// The calls that an assistant's message has made, arguments as text (OpenAI's) or as an object (Ollama's).
pub(crate) fn calls(field: Field<'_>) -> Read<Vec<ToolCall>> {
    field.list(|call| {
        let object = call.object()?;
        object.get("type", function_type)?;
        let id = object.get("id", Field::string)?.unwrap_or_default();
        object.require("function", |function| {
            let object = function.object()?;
            let arguments = object.get("arguments", arguments)?.unwrap_or_else(|| "{}".to_owned());
            Ok(ToolCall { id: id.clone(), name: object.require("name", Field::string)?, arguments })
        })
    })
}

fn arguments(field: Field<'_>) -> Read<String> {
    match field.kind() {
        Kind::String => field.string(),
        Kind::Object => Ok(field.text().to_owned()),
        _ => Err(field.expected("a string of JSON, or an object")),
    }
}

/// What may be called in an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    names: Vec<String>,
    parallel: bool,
}

impl Offer {
    #[cfg(test)]
    pub(crate) fn one(name: &str) -> Self {
        Self { names: vec![name.to_owned()], parallel: true }
    }

    /// What a runner was asked to offer.
    pub fn of(generate: &Generate) -> Option<Arc<Self>> {
        let Tools { definitions, parallel, .. } = generate.tools.as_ref()?;
        let names = definitions.iter().map(|tool| tool.name.clone()).collect();
        Some(Arc::new(Self { names, parallel: *parallel }))
    }
}

/// An answer's text as it is shown: with its calls taken out, where some may be made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Speech {
    calls: Option<Calls>,
    /// Of text that is held.
    logprobs: Vec<TokenLogprob>,
}

/// What is shown.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shown {
    Text(Text),
    /// With its place among the calls.
    Call(usize, Made),
}

impl Speech {
    pub(crate) fn new(offer: Option<Arc<Offer>>) -> Self {
        Self { calls: offer.map(Calls::new), logprobs: Vec::new() }
    }

    /// Whether all text is shown as it comes.
    pub(crate) fn is_plain(&self) -> bool {
        self.calls.is_none()
    }

    /// Takes a piece of text.
    pub(crate) fn push(&mut self, piece: Text) -> Vec<Shown> {
        let Some(calls) = &mut self.calls else { return vec![Shown::Text(piece)] };
        self.logprobs.extend(piece.logprobs);
        let said = calls.push(&piece.text);
        self.show(said)
    }

    /// Ends the text.
    pub(crate) fn finish(&mut self) -> Vec<Shown> {
        let said = self.calls.as_mut().map(Calls::finish).unwrap_or_default();
        self.show(said)
    }

    /// How an answer ended that ended by itself with `reason`.
    pub(crate) fn finish_name(&self, reason: &'static str) -> &'static str {
        let has_called = self.calls.as_ref().is_some_and(|calls| calls.made > 0);
        if has_called && reason == "stop" { "tool_calls" } else { reason }
    }

    /// The log-probabilities of a call's tokens are not shown.
    fn show(&mut self, said: Vec<Said>) -> Vec<Shown> {
        let made = self.calls.as_ref().map_or(0, |calls| calls.made);
        let mut next = made - said.iter().filter(|said| matches!(said, Said::Call(_))).count();
        let show = |said| {
            let logprobs = std::mem::take(&mut self.logprobs);
            match said {
                Said::Text(text) => Shown::Text(Text { text, tokens: 0, logprobs }),
                Said::Call(call) => {
                    next += 1;
                    Shown::Call(next - 1, call)
                }
            }
        };
        said.into_iter().map(show).collect()
    }
}

/// A call that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub(crate) name: String,
    /// JSON, an object.
    pub(crate) arguments: String,
}

/// A call as OpenAI's clients are told of it: arguments are a text.
#[derive(Serialize)]
pub(crate) struct OpenAiCall<'a> {
    id: String,
    r#type: &'static str,
    function: OpenAiFunction<'a>,
}

#[derive(Serialize)]
struct OpenAiFunction<'a> {
    name: &'a str,
    arguments: &'a str,
}

/// A call as Ollama's clients are told of it: arguments are an object.
#[derive(Serialize)]
pub(crate) struct OllamaCall<'a> {
    function: OllamaFunction<'a>,
}

#[derive(Serialize)]
struct OllamaFunction<'a> {
    name: &'a str,
    arguments: Option<&'a RawValue>,
}

impl Made {
    /// `answer` tells this answer's calls from all others'.
    pub(crate) fn openai(&self, answer: &str, place: usize) -> OpenAiCall<'_> {
        let function = OpenAiFunction { name: &self.name, arguments: &self.arguments };
        OpenAiCall { id: format!("call_{answer}_{place}"), r#type: "function", function }
    }

    pub(crate) fn ollama(&self) -> OllamaCall<'_> {
        let arguments = serde_json::from_str(&self.arguments).ok();
        OllamaCall { function: OllamaFunction { name: &self.name, arguments } }
    }
}

/// What comes of a piece of text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Said {
    Text(String),
    Call(Made),
}

/// Finds calls in an answer.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    offer: Arc<Offer>,
    held: String,
    /// Whether what is held stands behind [`OPEN`].
    inside: bool,
    /// Whether text was shown.
    has_text: bool,
    /// Whether any was since the last call.
    has_text_since: bool,
    /// Space behind a call, which belongs to the text that follows, if any does.
    space: String,
    made: usize,
}

impl Calls {
    pub(crate) fn new(offer: Arc<Offer>) -> Self {
        let (held, space) = Default::default();
        Self { offer, held, inside: false, has_text: false, has_text_since: false, space, made: 0 }
    }

    /// Takes a piece of text.
    pub(crate) fn push(&mut self, text: &str) -> Vec<Said> {
        self.held.push_str(text);
        let mut said = Vec::new();
        while self.advance(&mut said) {}
        said
    }

    /// Ends the text.
    pub(crate) fn finish(&mut self) -> Vec<Said> {
        let (held, mut said) = (std::mem::take(&mut self.held), Vec::new());
        match std::mem::take(&mut self.inside) {
            true => self.close(&held, "", &mut said),
            false if self.is_bare(&held) => match self.read_all(&held) {
                Some(calls) => calls.into_iter().for_each(|call| self.make(call, &mut said)),
                None => self.say(held, &mut said),
            },
            false => self.say(held, &mut said),
        }
        said
    }

    /// Says what is clear by now; whether there may be more.
    fn advance(&mut self, said: &mut Vec<Said>) -> bool {
        if self.inside {
            let Some(end) = self.held.find(CLOSE) else { return false };
            let rest = self.held.split_off(end + CLOSE.len());
            let call = std::mem::replace(&mut self.held, rest);
            self.inside = false;
            self.close(&call[..end], CLOSE, said);
            return true;
        }
        if self.is_bare(&self.held) {
            return false;
        }
        if let Some(start) = self.held.find(OPEN) {
            let rest = self.held.split_off(start + OPEN.len());
            let mut before = std::mem::replace(&mut self.held, rest);
            before.truncate(start);
            self.inside = true;
            self.say(before, said);
            return true;
        }
        let free = self.held.len() - open_suffix(&self.held);
        let blank = self.held[..free].trim().is_empty();
        if free > 0 && (self.has_text || !blank) {
            let rest = self.held.split_off(free);
            let text = std::mem::replace(&mut self.held, rest);
            self.say(text, said);
        }
        false
    }

    /// Whether this may be a call without a tag: nothing was said before.
    fn is_bare(&self, text: &str) -> bool {
        !self.has_text && self.made == 0 && text.trim_start().starts_with('{')
    }

    /// What stood between tags: a call, or text after all.
    fn close(&mut self, inner: &str, close: &str, said: &mut Vec<Said>) {
        match self.read(inner.trim()) {
            Some(call) => self.make(call, said),
            None if close.is_empty() && self.made > 0 => {}
            None => self.say(format!("{OPEN}{inner}{close}"), said),
        }
    }

    fn make(&mut self, call: Made, said: &mut Vec<Said>) {
        if self.offer.parallel || self.made == 0 {
            self.made += 1;
            self.has_text_since = false;
            self.space.clear();
            said.push(Said::Call(call));
        }
    }

    fn say(&mut self, text: String, said: &mut Vec<Said>) {
        let (blank, has_called) = (text.trim().is_empty(), self.made > 0);
        if text.is_empty() || (has_called && !self.offer.parallel) {
            return;
        }
        if blank && has_called && !self.has_text_since {
            return self.space.push_str(&text);
        }
        if blank && !self.has_text && self.inside {
            return;
        }
        (self.has_text, self.has_text_since) = (true, true);
        said.push(Said::Text(std::mem::take(&mut self.space) + &text));
    }

    /// Bare calls, one after the other.
    fn read_all(&self, text: &str) -> Option<Vec<Made>> {
        let objects = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
        let calls = objects.map(|object| self.read(object.ok()?.get())).collect::<Option<Vec<_>>>()?;
        Some(calls).filter(|calls| !calls.is_empty())
    }

    fn read(&self, text: &str) -> Option<Made> {
        #[derive(Deserialize)]
        struct Written<'a> {
            name: String,
            #[serde(borrow, alias = "parameters")]
            arguments: Option<&'a RawValue>,
        }
        let Written { name, arguments } = serde_json::from_str(text).ok()?;
        self.offer.names.contains(&name).then_some(())?;
        let arguments = arguments.map_or("{}", RawValue::get);
        // Some write the object as a text.
        let arguments = serde_json::from_str::<String>(arguments).unwrap_or_else(|_| arguments.to_owned());
        let is_object = serde_json::from_str::<&RawValue>(&arguments).is_ok_and(|raw| raw.get().starts_with('{'));
        is_object.then_some(Made { name, arguments })
    }
}

/// Length of the end of a text that may begin a tag.
fn open_suffix(text: &str) -> usize {
    (1..OPEN.len()).rev().find(|&length| text.ends_with(&OPEN[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn offer(parallel: bool) -> Arc<Offer> {
        Arc::new(Offer { names: vec!["f".to_owned(), "g".to_owned()], parallel })
    }

    /// What comes of a text that arrives in pieces of `size` bytes: the text, and the calls as `name(arguments)`.
    fn run(text: &str, size: usize, parallel: bool) -> (String, Vec<String>) {
        let mut calls = Calls::new(offer(parallel));
        let chars: Vec<char> = text.chars().collect();
        let mut said: Vec<Said> =
            chars.chunks(size).flat_map(|piece| calls.push(&piece.iter().collect::<String>())).collect();
        said.extend(calls.finish());
        let (mut shown, mut made) = (String::new(), Vec::new());
        for said in said {
            match said {
                Said::Text(text) => shown.push_str(&text),
                Said::Call(call) => made.push(format!("{}({})", call.name, call.arguments)),
            }
        }
        assert_eq!(made.len(), calls.made);
        (shown, made)
    }

    #[track_caller]
    fn check(text: &str, shown: &str, made: &[&str]) {
        for size in [1, 3, 7, 1000] {
            let (text, calls) = run(text, size, true);
            assert_eq!(
                (text.as_str(), calls.iter().map(String::as_str).collect::<Vec<_>>().as_slice()),
                (shown, made),
                "by {size}"
            );
        }
    }

    const F: &str = r#"{"name": "f", "arguments": {"x": 1}}"#;

    #[test]
    fn calls_are_found_in_either_form() {
        check(&format!("<tool_call>\n{F}\n</tool_call>"), "", &[r#"f({"x": 1})"#]);
        check(
            &format!("I look.\n<tool_call>{F}</tool_call>\n<tool_call>{{\"name\":\"g\"}}</tool_call>\n"),
            "I look.\n",
            &[r#"f({"x": 1})"#, "g({})"],
        );
        check(&format!(" {F}"), "", &[r#"f({"x": 1})"#]);
        check(r#"{"name": "f", "parameters": {}}"#, "", &["f({})"]);
        check(r#"{"name": "f", "arguments": "{\"x\": 1}"}"#, "", &[r#"f({"x": 1})"#]);
        check(&format!("<tool_call>{F}"), "", &[r#"f({"x": 1})"#]);
    }

    #[test]
    fn what_is_no_call_stays_text() {
        for text in [
            "a < b <tool",
            "<tool_call>nothing</tool_call> after",
            r#"<tool_call>{"name": "h", "arguments": {}}</tool_call>"#,
            r#"<tool_call>{"name": "f", "arguments": [1]}</tool_call>"#,
            r#"{"name": "h"}"#,
            r#"{"answer": 42} is it"#,
            r#"<tool_call>{"name": "f", "argu"#,
            "plain",
        ] {
            check(text, text, &[]);
        }
        check(&format!("Say {F}"), &format!("Say {F}"), &[]);
        let (call, made) = (format!("<tool_call>{F}</tool_call>"), r#"f({"x": 1})"#);
        check(&format!("{call}\n so it is \n{call} \n"), "\n so it is \n", &[made, made]);
    }

    #[test]
    fn one_call_where_one_is_wanted() {
        let (text, made) = run(&format!("<tool_call>{F}</tool_call> and <tool_call>{F}</tool_call>"), 5, false);
        assert_eq!((text.as_str(), made.len()), ("", 1));
    }

    proptest! {
        #[test]
        fn any_cut_says_the_same(parts in prop::collection::vec(
            prop::sample::select(vec!["<tool_call>", "</tool_call>", F, "a", " ", "\n", "<", "{", "}", "é"]), 0..8), size in 1usize..9)
        {
            let text = parts.concat();
            prop_assert_eq!(run(&text, size, true), run(&text, 10_000, true), "{}", text);
        }

        #[test]
        fn text_without_calls_comes_through(text in "[a-z<>_/{}\" é\n]{0,40}") {
            prop_assume!(!text.trim().is_empty() && !text.contains(OPEN));
            prop_assert_eq!(run(&text, 3, true).0, text);
        }
    }
}
