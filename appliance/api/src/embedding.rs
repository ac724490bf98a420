//! `POST /v1/embeddings`: the request and its reply.

use crate::{
    ApiError, Usage,
    completion::prompts,
    field::{Fault, Field, Object, Read},
    reply::write_json,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sandbox_wire::runner::Prompt;
use serde::Serialize;

/// The field that the text comes in.
pub const PROMPT_PARAM: &str = "input";
/// Most texts in one request.
pub const INPUTS_MAX: usize = 256;

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbeddingRequest {
    /// The function called.
    pub model: String,
    /// The texts, one a vector; 1 to [`INPUTS_MAX`].
    pub inputs: Vec<Prompt>,
    /// How vectors are written.
    pub encoding: Encoding,
    /// The length wanted of a vector.
    pub dimensions: Option<u32>,
}

/// How a vector is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// A list of numbers.
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats.
    Base64,
}

impl EmbeddingRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Ok(Object::from_body(body).and_then(|body| request(&body))?)
    }

    /// Checks the length wanted against what the model gives.
    ///
    /// # Errors
    /// 400: the model's vectors are of another length, and shortening them would need a model trained for it.
    pub fn check_dimensions(&self, embedding_length: u32) -> Result<(), ApiError> {
        match self.dimensions {
            Some(wanted) if wanted != embedding_length => {
                let message = format!("`dimensions`: {wanted} asked for; the model's vectors have {embedding_length}");
                Err(ApiError::invalid_param("dimensions", message))
            }
            _ => Ok(()),
        }
    }
}

/// The reply's body. `usage` counts no produced tokens.
pub fn reply(model: &str, vectors: &[Vec<f32>], encoding: Encoding, usage: &Usage) -> Vec<u8> {
    let data = vectors.iter().enumerate();
    let data =
        data.map(|(index, values)| Embedding { object: "embedding", index, embedding: vector(values, encoding) });
    let mut body = Vec::new();
    write_json(&Reply { object: "list", data: data.collect(), model, usage: usage.of_prompt_only() }, &mut body);
    body
}

#[derive(Serialize)]
struct Reply<'a, U> {
    object: &'static str,
    data: Vec<Embedding<'a>>,
    model: &'a str,
    usage: U,
}

#[derive(Serialize)]
struct Embedding<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Float(&'a [f32]),
    Base64(String),
}

fn vector(values: &[f32], encoding: Encoding) -> Vector<'_> {
    match encoding {
        Encoding::Float => Vector::Float(values),
        Encoding::Base64 => {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            Vector::Base64(STANDARD.encode(bytes))
        }
    }
}

fn request(body: &Object<'_>) -> Read<EmbeddingRequest> {
    Ok(EmbeddingRequest {
        model: body.require("model", Field::string)?,
        inputs: body.require(PROMPT_PARAM, |input| prompts(input, INPUTS_MAX))?,
        encoding: body.get("encoding_format", encoding)?.unwrap_or_default(),
        dimensions: body.get("dimensions", crate::settings::positive)?,
    })
}

fn encoding(field: Field<'_>) -> Read<Encoding> {
    match &*field.cow()? {
        "float" => Ok(Encoding::Float),
        "base64" => Ok(Encoding::Base64),
        other => Err(Fault::here(format!("`{}` is neither float nor base64", other.escape_debug()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &str) -> Result<EmbeddingRequest, ApiError> {
        EmbeddingRequest::parse(format!("{{\"model\": \"m\", {fields}}}").as_bytes())
    }

    #[test]
    fn requests_are_read() {
        let request = parse(r#""input": ["a", "b"], "encoding_format": "base64", "dimensions": 3, "user": 1"#).unwrap();
        assert_eq!(request.inputs.len(), 2);
        assert_eq!(request.encoding, Encoding::Base64);
        assert!(request.check_dimensions(3).is_ok());
        assert_eq!(request.check_dimensions(4).unwrap_err().param.as_deref(), Some("dimensions"));
        assert_eq!(parse(r#""input": "a""#).unwrap().encoding, Encoding::Float);
        let check = |fields: &str, param: &str| {
            assert_eq!(parse(fields).unwrap_err().param.as_deref(), Some(param), "{fields}");
        };
        check(r#""x": 1"#, "input");
        check(r#""input": []"#, "input");
        check(r#""input": "a", "encoding_format": "hex""#, "encoding_format");
        check(r#""input": "a", "dimensions": 0"#, "dimensions");
    }

    #[test]
    fn replies_are_openais() {
        let usage = Usage { prompt_tokens: 5, completion_tokens: 0, cached_tokens: 0, receipt: None };
        let text = |encoding| String::from_utf8(reply("m", &[vec![0.5, -1.0]], encoding, &usage)).unwrap();
        assert_eq!(
            text(Encoding::Float),
            r#"{"object":"list","data":[{"object":"embedding","index":0,"embedding":[0.5,-1.0]}],"model":"m","usage":{"prompt_tokens":5,"total_tokens":5}}"#
        );
        assert!(text(Encoding::Base64).contains(r#""embedding":"AAAAPwAAgL8=""#));
    }
}
