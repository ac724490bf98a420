//! `POST /v1/chat/completions`: the request.

use crate::{
    ApiError, Bounds, Settings,
    field::{Fault, Field, Object, Read},
    message::messages,
    settings::{Streaming, empty, positive, unsupported},
    tool,
};
use sandbox_wire::runner::{Generate, Message, Prompt, TOP_LOGPROBS_MAX};

/// The field that the prompt comes in.
pub const PROMPT_PARAM: &str = "messages";

/// A request, checked but for what its function allows.
#[derive(Clone, Debug, PartialEq)]
pub struct ChatRequest {
    /// The function called.
    pub model: String,
    /// The chat so far; never empty.
    pub messages: Vec<Message>,
    /// How to produce the answer.
    pub settings: Settings,
    /// Answer in pieces.
    pub stream: bool,
    /// End the stream with a chunk of usage.
    pub include_usage: bool,
}

impl ChatRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Ok(Object::from_body(body).and_then(|body| request(&body))?)
    }

    /// What a runner is asked.
    ///
    /// # Errors
    /// 400: more is asked for than the function allows.
    pub fn into_generate(self, bounds: &Bounds) -> Result<Generate, ApiError> {
        self.settings.generate(Prompt::Chat(self.messages), bounds)
    }
}

fn request(body: &Object<'_>) -> Read<ChatRequest> {
    let Streaming { stream, include_usage } = Streaming::read(body)?;
    refuse_others(body)?;
    refuse_media(body)?;
    Ok(ChatRequest {
        model: body.require("model", Field::string)?,
        messages: body.require(PROMPT_PARAM, messages)?,
        settings: settings(body)?.with_tools(tool::tools(body)?, "response_format")?,
        stream,
        include_usage,
    })
}

fn settings(body: &Object<'_>) -> Read<Settings> {
    let settings = Settings::read(body)?;
    let newer = body.get("max_completion_tokens", positive)?.map(|tokens| (tokens, "max_completion_tokens"));
    Ok(Settings { tokens_max: newer.or(settings.tokens_max), logprobs: logprobs(body)?, ..settings })
}

fn logprobs(body: &Object<'_>) -> Read<Option<u8>> {
    let wanted = body.get("logprobs", Field::boolean)?.unwrap_or_default();
    let top = body.get("top_logprobs", |top| top.integer(0..=TOP_LOGPROBS_MAX.into()))?;
    match (wanted, top) {
        (false, Some(_)) => Err(Fault::here("only together with `logprobs`").within("top_logprobs")),
        (false, None) => Ok(None),
        (true, top) => Ok(Some(top.unwrap_or(0) as u8)),
    }
}

/// OpenAI's older words for tools, and what there is not.
fn refuse_others(body: &Object<'_>) -> Read<()> {
    body.get("functions", empty)?;
    body.get("function_call", no_choice)?;
    body.get("web_search_options", unsupported)?;
    body.get("grammar", unsupported)?;
    Ok(())
}

/// With no tools, `none` and `auto` say the same.
fn no_choice(field: Field<'_>) -> Read<()> {
    match field.text() {
        r#""none""# | r#""auto""# => Ok(()),
        _ => Err(Fault::here("not supported; use `tool_choice`")),
    }
}

fn refuse_media(body: &Object<'_>) -> Read<()> {
    let text_only = |field: Field<'_>| match &*field.cow()? {
        "text" => Ok(()),
        other => Err(Fault::here(format!("only `text` is produced, not `{}`", other.escape_debug()))),
    };
    body.get("modalities", |modalities| modalities.list(text_only))?;
    body.get("audio", unsupported)?;
    Ok(())
}

#[cfg(test)]
mod tests;
