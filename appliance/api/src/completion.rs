//! `POST /v1/completions`: the request.
//!
//! A list of prompts is answered by one choice each, numbered by its place in the list.

use crate::{
    ApiError, Bounds, Settings,
    field::{Fault, Field, Kind, Object, Read},
    settings::{Streaming, one},
};
use sandbox_wire::runner::{Generate, Prompt};

/// The field that the prompt comes in.
pub const PROMPT_PARAM: &str = "prompt";
/// Most prompts in one request.
pub const PROMPTS_MAX: usize = 16;

/// Tokens produced when the request does not say: OpenAI's default.
const TOKENS_DEFAULT: u32 = 16;
/// Most alternatives a token: OpenAI's limit here, lower than that of a chat.
const LOGPROBS_MAX: i64 = 5;

/// A request, checked but for what its function allows.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    /// The function called.
    pub model: String,
    /// What to begin from, one for each choice; 1 to [`PROMPTS_MAX`].
    pub prompts: Vec<Prompt>,
    /// How to produce the text.
    pub settings: Settings,
    /// Answer in pieces.
    pub stream: bool,
    /// End the stream with a chunk of usage.
    pub include_usage: bool,
}

impl CompletionRequest {
    /// Reads a request's body.
    ///
    /// # Errors
    /// 400 with the field at fault.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        Ok(Object::from_body(body).and_then(|body| request(&body))?)
    }

    /// What runners are asked, one a choice.
    ///
    /// # Errors
    /// 400: more is asked for than the function allows.
    pub fn into_generates(mut self, bounds: &Bounds) -> Result<Vec<Generate>, ApiError> {
        self.settings.tokens_max.get_or_insert((TOKENS_DEFAULT.min(bounds.output_tokens), "max_tokens"));
        self.prompts.into_iter().map(|prompt| self.settings.generate(prompt, bounds)).collect()
    }
}

fn request(body: &Object<'_>) -> Read<CompletionRequest> {
    let Streaming { stream, include_usage } = Streaming::read(body)?;
    body.get("best_of", one)?;
    body.get("echo", |echo| refuse_if(echo.boolean()?))?;
    body.get("suffix", |suffix| refuse_if(!suffix.cow()?.is_empty()))?;
    let logprobs = body.get("logprobs", |count| count.integer(0..=LOGPROBS_MAX))?.map(|count| count as u8);
    Ok(CompletionRequest {
        model: body.require("model", Field::string)?,
        prompts: body.require(PROMPT_PARAM, |prompt| prompts(prompt, PROMPTS_MAX))?,
        settings: Settings { logprobs, ..Settings::read(body)? },
        stream,
        include_usage,
    })
}

fn refuse_if(asked: bool) -> Read<()> {
    if asked { Err(Fault::here("not supported")) } else { Ok(()) }
}

/// A text, tokens, or a list of at most `most` of either.
pub(crate) fn prompts(field: Field<'_>, most: usize) -> Read<Vec<Prompt>> {
    let prompts = match (field.kind(), field.kind_of_first()) {
        (Kind::String, _) => return Ok(vec![Prompt::Text(field.string()?)]),
        (Kind::List, Some(Kind::Number)) => return Ok(vec![Prompt::Tokens(field.tokens()?)]),
        (Kind::List, Some(Kind::String)) => field.list(|text| text.string().map(Prompt::Text))?,
        (Kind::List, Some(Kind::List)) => field.list(tokens)?,
        (Kind::List, None) => return Err(Fault::here("expected at least one text or token")),
        _ => return Err(field.expected("a string, a list of strings, tokens, or a list of lists of tokens")),
    };
    match prompts.len() {
        count if count > most => Err(Fault::here(format!("{count} of them; the most is {most}"))),
        _ => Ok(prompts),
    }
}

fn tokens(field: Field<'_>) -> Read<Prompt> {
    let tokens = field.tokens()?;
    if tokens.is_empty() { Err(Fault::here("expected at least one token")) } else { Ok(Prompt::Tokens(tokens)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_wire::runner::Tenant;

    const BOUNDS: Bounds = Bounds { output_tokens: 100, deadline_ms: 1_000, seed: 7, tenant: Tenant(9) };

    fn parse(fields: &str) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::parse(format!("{{\"model\": \"m\", {fields}}}").as_bytes())
    }

    #[test]
    fn a_prompt_is_text_or_tokens_or_many() {
        let check = |prompt: &str, expected: &[Prompt]| {
            assert_eq!(parse(&format!("\"prompt\": {prompt}")).unwrap().prompts, expected, "{prompt}");
        };
        let text = |text: &str| Prompt::Text(text.to_owned());
        check("\"\"", &[text("")]);
        check("\"a\\nb\"", &[text("a\nb")]);
        check("[\"a\", \"b\"]", &[text("a"), text("b")]);
        check("[ 1, 2 ]", &[Prompt::Tokens(vec![1, 2])]);
        check("[ [1], [2, 3] ]", &[Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]);
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        let check = |fields: &str, param: &str| {
            let error = parse(fields).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{fields}: {error}");
        };
        check("\"stream\": false", "prompt");
        let many = vec!["\"a\""; PROMPTS_MAX + 1].join(",");
        check(&format!("\"prompt\": [{many}]"), "prompt");
        for prompt in ["[]", "1", "{}", "[{}]", "[1, \"a\"]", "[-1]", "null"] {
            check(&format!("\"prompt\": {prompt}"), "prompt");
        }
        check("\"prompt\": [\"a\", 1]", "prompt[1]");
        check("\"prompt\": [[1], []]", "prompt[1]");
        check("\"prompt\": \"\", \"n\": 2", "n");
        check("\"prompt\": \"\", \"best_of\": 2", "best_of");
        check("\"prompt\": \"\", \"echo\": true", "echo");
        check("\"prompt\": \"\", \"suffix\": \"x\"", "suffix");
        check("\"prompt\": \"\", \"logprobs\": 6", "logprobs");
        check("\"prompt\": \"\", \"logprobs\": true", "logprobs");
        check("\"prompt\": \"\", \"max_tokens\": 0", "max_tokens");
    }

    #[test]
    fn openais_defaults() {
        let request = parse("\"prompt\": [\"a\", \"b\"], \"echo\": false, \"suffix\": \"\", \"logprobs\": 0").unwrap();
        let small = Bounds { output_tokens: 5, ..BOUNDS };
        assert_eq!(request.clone().into_generates(&small).unwrap()[1].tokens_max, 5);
        let generates = request.into_generates(&BOUNDS).unwrap();
        assert_eq!(generates.len(), 2);
        assert_eq!((generates[0].tokens_max, generates[0].logprobs), (16, Some(0)));
        assert_eq!(generates[0].sampling.seed, 7);
    }
}
