//! llama-server's `/tokenize`, `/detokenize` and `/apply-template`: requests and replies.
//!
//! llama-server holds one model; here `model` says which function is meant. Where it is absent the caller of this
//! crate chooses.

use crate::{
    ApiError,
    field::{Fault, Field, Object, Read},
    message::messages,
    reply::write_json,
};
use sandbox_wire::runner::Message;
use serde::Serialize;

/// `POST /tokenize`.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenizeRequest {
    /// The function whose vocabulary is meant.
    pub model: Option<String>,
    /// The text.
    pub content: String,
    /// Add the model's begin and end tokens; off unless asked for.
    pub add_special: bool,
    /// Read special tokens' text as those tokens; on unless refused.
    pub parse_special: bool,
}

/// `POST /detokenize`.
#[derive(Clone, Debug, PartialEq)]
pub struct DetokenizeRequest {
    /// The function whose vocabulary is meant.
    pub model: Option<String>,
    /// The tokens.
    pub tokens: Vec<u32>,
}

/// `POST /apply-template`.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateRequest {
    /// The function whose template is meant.
    pub model: Option<String>,
    /// The messages; never empty.
    pub messages: Vec<Message>,
}

impl TokenizeRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Ok(Object::from_body(body).and_then(|body| tokenize(&body))?)
    }
}

impl DetokenizeRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Ok(Object::from_body(body).and_then(|body| detokenize(&body))?)
    }
}

impl TemplateRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Ok(Object::from_body(body).and_then(|body| template(&body))?)
    }
}

/// Reply to [`TokenizeRequest`].
pub fn tokenize_reply(tokens: &[u32]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        tokens: &'a [u32],
    }
    body(&Reply { tokens })
}

/// Reply to [`DetokenizeRequest`].
pub fn detokenize_reply(content: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        content: &'a str,
    }
    body(&Reply { content })
}

/// Reply to [`TemplateRequest`].
pub fn template_reply(prompt: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Reply<'a> {
        prompt: &'a str,
    }
    body(&Reply { prompt })
}

fn body(reply: &impl Serialize) -> Vec<u8> {
    let mut body = Vec::new();
    write_json(reply, &mut body);
    body
}

fn tokenize(body: &Object<'_>) -> Read<TokenizeRequest> {
    body.get("with_pieces", |pieces| match pieces.boolean()? {
        true => Err(Fault::here("not supported; `/detokenize` gives the text of tokens")),
        false => Ok(()),
    })?;
    Ok(TokenizeRequest {
        model: body.get("model", Field::string)?,
        content: body.require("content", Field::string)?,
        add_special: body.get("add_special", Field::boolean)?.unwrap_or(false),
        parse_special: body.get("parse_special", Field::boolean)?.unwrap_or(true),
    })
}

fn detokenize(body: &Object<'_>) -> Read<DetokenizeRequest> {
    Ok(DetokenizeRequest { model: body.get("model", Field::string)?, tokens: body.require("tokens", Field::tokens)? })
}

fn template(body: &Object<'_>) -> Read<TemplateRequest> {
    Ok(TemplateRequest { model: body.get("model", Field::string)?, messages: body.require("messages", messages)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let request = TokenizeRequest::parse(br#"{"content": "a", "add_special": true}"#).unwrap();
        assert!(request.add_special && request.parse_special && request.model.is_none());
        let param = |error: ApiError| error.param.unwrap_or_default();
        assert_eq!(param(TokenizeRequest::parse(b"{}").unwrap_err()), "content");
        let pieces = br#"{"content": "a", "with_pieces": true}"#;
        assert_eq!(param(TokenizeRequest::parse(pieces).unwrap_err()), "with_pieces");
        assert_eq!(DetokenizeRequest::parse(br#"{"tokens": [7]}"#).unwrap().tokens, [7]);
        assert_eq!(param(DetokenizeRequest::parse(br#"{"tokens": "1"}"#).unwrap_err()), "tokens");
        let chat = br#"{"model": "m", "messages": [{"role": "user", "content": "hi"}]}"#;
        assert_eq!(TemplateRequest::parse(chat).unwrap().messages[0].content, "hi");
    }

    #[test]
    fn replies_are_llama_servers() {
        assert_eq!(tokenize_reply(&[1, 2]), br#"{"tokens":[1,2]}"#);
        assert_eq!(detokenize_reply("a\"b"), br#"{"content":"a\"b"}"#);
        assert_eq!(template_reply("<|x|>"), br#"{"prompt":"<|x|>"}"#);
    }
}
