//! Ollama's requests.

use crate::{
    ApiError, Bounds, Settings,
    embedding::{EmbeddingRequest, Encoding, INPUTS_MAX},
    field::{Fault, Field, Kind, Object, Read},
    message::message,
    settings::{Defaults, fold_seed, positive, sampling, stops},
    tool,
};
use sandbox_wire::runner::{Call, Constraint, Generate, Message, Prompt, Role, TOP_LOGPROBS_MAX, Tools};

const DEFAULTS: Defaults = Defaults { temperature: 0.8, top_p: 0.9, min_p: 0.0, repeat_penalty: 1.1 };
/// The tag that a model has when nobody named one.
const LATEST: &str = ":latest";

/// What `/api/chat` or `/api/generate` asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Ask {
    /// Text.
    Text(Box<TextRequest>),
    /// Nothing but that the function be awake: there is no prompt.
    Load {
        /// The function called.
        model: String,
    },
    /// That nothing of the function be kept: there is no prompt, and `keep_alive` is 0.
    Unload {
        /// The function called.
        model: String,
    },
}

/// A request for text, checked but for what its function allows.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRequest {
    /// The function called.
    pub model: String,
    /// What to begin from.
    pub prompt: Prompt,
    /// How to produce the answer.
    pub settings: Settings,
    /// Answer in pieces.
    pub stream: bool,
}

impl TextRequest {
    /// What a runner is asked.
    ///
    /// # Errors
    /// 400: more is asked for than the function allows.
    pub fn into_generate(self, bounds: &Bounds) -> Result<Generate, ApiError> {
        self.settings.generate(self.prompt, bounds)
    }
}

/// Reads the body of `POST /api/chat`.
///
/// # Errors
/// 400 with the field at fault.
pub fn chat(body: &[u8]) -> Result<Ask, ApiError> {
    read(body, |body| {
        let messages = body.get("messages", |list| list.list(said))?.unwrap_or_default();
        let definitions = body.get("tools", tool::definitions)?.filter(|tools| !tools.is_empty());
        let tools = definitions.map(|definitions| Tools { definitions, call: Call::May, parallel: true });
        ask(body, (!messages.is_empty()).then_some(Prompt::Chat(messages)), tools)
    })
}

/// Reads the body of `POST /api/generate`.
///
/// # Errors
/// 400 with the field at fault.
pub fn generate(body: &[u8]) -> Result<Ask, ApiError> {
    read(body, |body| {
        for name in ["suffix", "template"] {
            body.get(name, |text| nothing(text.cow()?.is_empty()))?;
        }
        body.get("context", |context| nothing(context.tokens()?.is_empty()))?;
        body.get("images", no_images)?;
        ask(body, prompt(body)?, None)
    })
}

/// Reads the body of `POST /api/embed`, and whether what does not fit the context is left out.
///
/// # Errors
/// 400 with the field at fault.
pub fn embed(body: &[u8]) -> Result<(EmbeddingRequest, bool), ApiError> {
    read(body, |body| {
        body.get("options", Field::object)?;
        keep_alive(body)?;
        let request = EmbeddingRequest {
            model: model(body)?,
            inputs: body.require("input", inputs)?,
            encoding: Encoding::Float,
            dimensions: body.get("dimensions", positive)?,
        };
        Ok((request, body.get("truncate", Field::boolean)?.unwrap_or(true)))
    })
}

/// Reads the body of `POST /api/show`: the function that is meant.
///
/// # Errors
/// 400 with the field at fault.
pub fn show(body: &[u8]) -> Result<String, ApiError> {
    // `name` is what older clients say.
    read(body, |body| match body.get("name", Field::string)? {
        Some(name) if body.find("model").is_none() => Ok(function_name(&name).to_owned()),
        _ => model(body),
    })
}

/// The function that a model's name means: without the tag that says nothing.
pub fn function_name(model: &str) -> &str {
    model.strip_suffix(LATEST).unwrap_or(model)
}

fn read<T>(body: &[u8], read: impl FnOnce(&Object<'_>) -> Read<T>) -> Result<T, ApiError> {
    Ok(Object::from_body(body).and_then(|body| read(&body))?)
}

fn model(body: &Object<'_>) -> Read<String> {
    body.require("model", |model| model.cow().map(|name| function_name(&name).to_owned()))
}

fn ask(body: &Object<'_>, prompt: Option<Prompt>, tools: Option<Tools>) -> Read<Ask> {
    let (model, ends) = (model(body)?, keep_alive(body)?);
    let stream = body.get("stream", Field::boolean)?.unwrap_or(true);
    let settings = settings(body)?.with_tools(tools, "format")?;
    Ok(match prompt {
        Some(prompt) => Ask::Text(Box::new(TextRequest { model, prompt, settings, stream })),
        None if ends => Ask::Unload { model },
        None => Ask::Load { model },
    })
}

/// A message, whose content may be missing.
fn said(field: Field<'_>) -> Read<Message> {
    field.object()?.get("images", no_images)?;
    message(field)
}

/// The prompt of `/api/generate`: a chat of one message, unless `raw`.
fn prompt(body: &Object<'_>) -> Read<Option<Prompt>> {
    let raw = body.get("raw", Field::boolean)?.unwrap_or_default();
    let system = body.get("system", Field::string)?.filter(|system| !system.is_empty());
    let Some(prompt) = body.get("prompt", Field::string)?.filter(|prompt| !prompt.is_empty()) else { return Ok(None) };
    if raw {
        return match system {
            Some(_) => Err(Fault::here("not together with `raw`").within("system")),
            None => Ok(Some(Prompt::Text(prompt))),
        };
    }
    let system = system.map(|content| Message::new(Role::System, content));
    Ok(Some(Prompt::Chat(system.into_iter().chain([Message::new(Role::User, prompt)]).collect())))
}

fn inputs(field: Field<'_>) -> Read<Vec<Prompt>> {
    let texts = match field.kind() {
        Kind::List => field.list(Field::string)?,
        _ => vec![field.string().map_err(|_| field.expected("a string or a list of strings"))?],
    };
    match texts.len() {
        0 => Err(Fault::here("expected at least one text")),
        count if count > INPUTS_MAX => Err(Fault::here(format!("{count} of them; the most is {INPUTS_MAX}"))),
        _ => Ok(texts.into_iter().map(Prompt::Text).collect()),
    }
}

fn settings(body: &Object<'_>) -> Read<Settings> {
    body.get("think", |think| match think.kind() {
        Kind::String => nothing(think.cow()?.is_empty()),
        _ => nothing(!think.boolean()?),
    })?;
    let constraint = body.get("format", format)?.unwrap_or(Constraint::None);
    let (logprobs, options) = (logprobs(body)?, body.get("options", Field::object)?);
    let settings = of_options(&options.unwrap_or(Object::empty())).map_err(|fault| fault.within("options"))?;
    Ok(Settings { constraint, logprobs, ..settings })
}

fn of_options(options: &Object<'_>) -> Read<Settings> {
    options.get("mirostat", |version| nothing(version.integer(0..=2)? == 0))?;
    for neutral_at_one in ["typical_p", "tfs_z"] {
        options.get(neutral_at_one, |value| nothing(value.number(0.0..=f32::MAX)? == 1.0))?;
    }
    let seed = options.get("seed", |seed| seed.integer(i64::MIN..=i64::MAX))?;
    let predict = options.get("num_predict", |count| count.integer(i32::MIN.into()..=u32::MAX.into()))?;
    Ok(Settings {
        sampling: sampling(options, &DEFAULTS)?,
        // -1 is Ollama's word for "draw one".
        seed: seed.filter(|seed| *seed != -1).map(fold_seed),
        stop: options.get("stop", stops)?.unwrap_or_default(),
        // Up to 0 is as many as there may be.
        tokens_max: predict
            .and_then(|count| u32::try_from(count).ok())
            .filter(|count| *count > 0)
            .map(|count| (count, "options.num_predict")),
        constraint: Constraint::None,
        tools: None,
        logprobs: None,
        cache_prompt: true,
    })
}

/// `"json"`, a schema, or an empty text.
fn format(field: Field<'_>) -> Read<Constraint> {
    match field.kind() {
        Kind::Object => crate::format::schema(field).map(Constraint::JsonSchema),
        Kind::String if field.cow()? == "json" => Ok(Constraint::JsonObject),
        Kind::String if field.cow()?.is_empty() => Ok(Constraint::None),
        _ => Err(Fault::here("expected \"json\" or a JSON schema")),
    }
}

fn logprobs(body: &Object<'_>) -> Read<Option<u8>> {
    let wanted = body.get("logprobs", Field::boolean)?.unwrap_or_default();
    let top = body.get("top_logprobs", |top| top.integer(0..=TOP_LOGPROBS_MAX.into()))?.unwrap_or(0) as u8;
    match wanted {
        false if top > 0 => Err(Fault::here("only together with `logprobs`").within("top_logprobs")),
        wanted => Ok(wanted.then_some(top)),
    }
}

/// Whether `keep_alive` is there, and nothing: a number of seconds, or a duration as Go writes it.
fn keep_alive(body: &Object<'_>) -> Read<bool> {
    let ends = body.get("keep_alive", |field| match field.kind() {
        Kind::Number => Ok(field.number(f32::MIN..=f32::MAX)? == 0.0),
        Kind::String => duration_is_zero(&field.cow()?),
        _ => Err(field.expected("a number of seconds, or a duration such as \"5m\"")),
    })?;
    Ok(ends.unwrap_or_default())
}

fn duration_is_zero(text: &str) -> Read<bool> {
    let wrong = || Fault::here(format!("`{}` is no duration such as \"5m\"", text.escape_debug()));
    let (mut rest, mut zero) = (text.trim_start_matches(['-', '+']), true);
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        zero &= number.parse::<f64>().map_err(|_| wrong())? == 0.0;
        let units = ["ns", "us", "µs", "ms", "s", "m", "h"];
        let unit = units.into_iter().find(|unit| after.starts_with(unit) && !(*unit == "m" && after.starts_with("ms")));
        rest = match unit {
            Some(unit) => &after[unit.len()..],
            None if after.is_empty() => after,
            None => return Err(wrong()),
        };
    }
    Ok(zero)
}

/// Refuses what asks for something that there is not.
fn nothing(asks_for_nothing: bool) -> Read<()> {
    if asks_for_nothing { Ok(()) } else { Err(Fault::here("not supported")) }
}

fn no_images(images: Field<'_>) -> Read<()> {
    nothing(images.list(|_| Ok(()))?.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sandbox_wire::runner::Tenant;

    const BOUNDS: Bounds = Bounds { output_tokens: 100, deadline_ms: 1_000, seed: 7, tenant: Tenant(9) };

    fn of(fields: &str) -> Result<Ask, ApiError> {
        generate(format!("{{\"model\": \"m:latest\", {fields}}}").as_bytes())
    }

    fn text(fields: &str) -> TextRequest {
        match of(&format!("\"prompt\": \"hello\", {fields}")) {
            Ok(Ask::Text(request)) => *request,
            other => panic!("{fields}: {other:?}"),
        }
    }

    fn asked(fields: &str) -> Generate {
        text(fields).into_generate(&BOUNDS).unwrap_or_else(|error| panic!("{fields}: {error}"))
    }

    fn message(role: Role, content: &str) -> Message {
        Message::new(role, content)
    }

    #[test]
    fn what_is_left_out_has_ollamas_default() {
        let request = text("\"x\": 1");
        assert_eq!((request.model.as_str(), request.stream), ("m", true));
        let asked = request.into_generate(&BOUNDS).unwrap();
        assert_eq!(asked.prompt, Prompt::Chat(vec![message(Role::User, "hello")]));
        assert_eq!((asked.tokens_max, asked.constraint, asked.logprobs), (100, Constraint::None, None));
        let sampling = asked.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.8, 0.9, 40, 0.0));
        assert_eq!((sampling.repeat_penalty, sampling.repeat_tokens, sampling.seed), (1.1, 64, 7));
    }

    #[test]
    fn every_option_is_honoured() {
        let options = r#""options": {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 5, "num_predict": 9,
            "stop": ["a"], "repeat_penalty": 1.5, "repeat_last_n": -1, "presence_penalty": 1, "frequency_penalty": -1,
            "num_ctx": 4096, "num_gpu": 1, "num_thread": 8, "mirostat": 0, "typical_p": 1, "tfs_z": 1.0}, "stream": false,
            "format": "json", "logprobs": true, "top_logprobs": 2, "keep_alive": "5m", "think": false, "context": []"#;
        assert!(!text(options).stream);
        let asked = asked(options);
        let sampling = &asked.sampling;
        assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.0, 0.5, 3, 0.1));
        assert_eq!((sampling.repeat_penalty, sampling.repeat_tokens), (1.5, u32::MAX));
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty, sampling.seed), (1.0, -1.0, 5));
        assert_eq!((asked.stop, asked.tokens_max), (vec!["a".to_owned()], 9));
        assert_eq!((asked.constraint, asked.logprobs), (Constraint::JsonObject, Some(2)));
    }

    #[test]
    fn a_prompt_is_a_chat_unless_raw() {
        let chat = vec![message(Role::System, "be brief"), message(Role::User, "hello")];
        assert_eq!(asked(r#""system": "be brief""#).prompt, Prompt::Chat(chat));
        assert_eq!(asked(r#""raw": true"#).prompt, Prompt::Text("hello".to_owned()));
        let schema = Constraint::JsonSchema(r#"{"type": "object"}"#.to_owned());
        assert_eq!(asked(r#""format": {"type": "object"}"#).constraint, schema);
        assert_eq!(asked(r#""format": """#).constraint, Constraint::None);
        for all in ["-1", "-2", "0"] {
            assert_eq!(asked(&format!(r#""options": {{"num_predict": {all}, "seed": -1}}"#)).tokens_max, 100);
        }
    }

    #[test]
    fn nothing_to_say_loads_or_unloads() {
        let load = Ask::Load { model: "m".to_owned() };
        assert_eq!(of(r#""prompt": """#).unwrap(), load);
        assert_eq!(of(r#""keep_alive": -1"#).unwrap(), load);
        assert_eq!(of(r#""keep_alive": "24h0m0s""#).unwrap(), load);
        assert_eq!(chat(br#"{"model": "m", "messages": []}"#).unwrap(), load);
        for zero in ["0", "\"0\"", "\"0s\"", "\"0h0m\""] {
            let unload = of(&format!(r#""keep_alive": {zero}"#)).unwrap();
            assert_eq!(unload, Ask::Unload { model: "m".to_owned() }, "{zero}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_names_its_field() {
        let check = |fields: &str, param: &str| {
            let error = of(&format!("\"prompt\": \"x\", {fields}")).unwrap_err();
            assert_eq!((error.status, error.param.as_deref()), (400, Some(param)), "{fields}: {error}");
        };
        check(r#""suffix": "x""#, "suffix");
        check(r#""template": "x""#, "template");
        check(r#""context": [1]"#, "context");
        check(r#""images": ["x"]"#, "images");
        check(r#""think": true"#, "think");
        check(r#""think": "high""#, "think");
        check(r#""raw": true, "system": "x""#, "system");
        check(r#""format": "xml""#, "format");
        check(r#""keep_alive": "soon""#, "keep_alive");
        check(r#""keep_alive": "5""#.replace('5', "5x").as_str(), "keep_alive");
        check(r#""top_logprobs": 1"#, "top_logprobs");
        check(r#""options": 1"#, "options");
        check(r#""options": {"mirostat": 1}"#, "options.mirostat");
        check(r#""options": {"typical_p": 0.5}"#, "options.typical_p");
        check(r#""options": {"temperature": 3}"#, "options.temperature");
        check(r#""options": {"repeat_penalty": 0}"#, "options.repeat_penalty");
        check(r#""options": {"stop": [""]}"#, "options.stop[0]");
        let error = text(r#""options": {"num_predict": 101}"#).into_generate(&BOUNDS).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("options.num_predict"));
        let images = chat(br#"{"model": "m", "messages": [{"role": "user", "content": "", "images": ["x"]}]}"#);
        assert_eq!(images.unwrap_err().param.as_deref(), Some("messages[0].images"));
    }

    #[test]
    fn tools_are_offered_and_calls_are_objects() {
        let body = br#"{"model": "m", "tools": [{"type": "function", "function": {"name": "f"}}], "messages": [
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "tool_name": "f", "content": "y"}]}"#;
        let Ok(Ask::Text(request)) = chat(body) else { panic!("no text") };
        let generate = request.into_generate(&BOUNDS).unwrap();
        assert_eq!(generate.tools.map(|tools| (tools.call, tools.definitions.len())), Some((Call::May, 1)));
        let Prompt::Chat(messages) = generate.prompt else { panic!("no chat") };
        assert_eq!(messages[0].tool_calls[0].arguments, r#"{"x": 1}"#);
    }

    #[test]
    fn embeddings_are_of_texts() {
        let (request, truncate) = embed(br#"{"model": "m:latest", "input": ["a", "b"], "truncate": false}"#).unwrap();
        assert_eq!((request.model.as_str(), request.inputs.len(), truncate), ("m", 2, false));
        assert!(embed(br#"{"model": "m", "input": ""}"#).unwrap().1);
        for wrong in ["[]", "1", "[1]"] {
            let error = embed(format!(r#"{{"model": "m", "input": {wrong}}}"#).as_bytes()).unwrap_err();
            assert!(error.param.is_some_and(|param| param.starts_with("input")), "{wrong}");
        }
    }

    #[test]
    fn a_function_is_shown_by_either_name() {
        assert_eq!(show(br#"{"model": "a:latest"}"#).unwrap(), "a");
        assert_eq!(show(br#"{"name": "a"}"#).unwrap(), "a");
        assert_eq!(show(b"{}").unwrap_err().param.as_deref(), Some("model"));
    }

    proptest! {
        #[test]
        fn any_value_of_any_field_is_read_or_refused(
            name in prop::sample::select(vec!["model", "messages", "prompt", "format", "options", "keep_alive", "think", "input", "context"]),
            value in "\\PC{0,12}|\\[[0-9,]{0,6}\\]|\"[0-9a-z.µ]{0,6}\"|-?[0-9.e]{1,9}",
        ) {
            let body = format!("{{\"model\": \"m\", \"prompt\": \"x\", \"{name}\": {value}}}");
            for error in [chat(body.as_bytes()).err(), generate(body.as_bytes()).err(), embed(body.as_bytes()).err(), show(body.as_bytes()).err()] {
                prop_assert!(error.is_none_or(|error| error.status == 400));
            }
        }
    }
}
