//! Ollama's listings: functions as its models.

use super::OLLAMA_VERSION;
use crate::reply::write_json;
use appliance_price::calendar::rfc3339;
use sandbox_wire::runner::ModelInfo;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What a model is, as far as it is known: that is once an instance has been up since the server began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Details {
    parent_model: &'static str,
    format: &'static str,
    family: String,
    families: Vec<String>,
    parameter_size: String,
    quantization_level: &'static str,
}

impl Details {
    /// The details of what was loaded.
    pub fn new(info: Option<&ModelInfo>) -> Self {
        let family = info.map(|info| info.architecture.clone()).unwrap_or_default();
        Self {
            parent_model: "",
            format: "gguf",
            families: if family.is_empty() { Vec::new() } else { vec![family.clone()] },
            family,
            parameter_size: info.map(|info| in_words(info.parameters)).unwrap_or_default(),
            quantization_level: "",
        }
    }
}

/// `134.52M`, as Ollama writes it.
fn in_words(parameters: u64) -> String {
    let parameters = parameters as f64;
    match parameters {
        p if p >= 1e9 => format!("{:.1}B", p / 1e9),
        p if p >= 1e6 => format!("{:.2}M", p / 1e6),
        p => format!("{:.2}K", p / 1e3),
    }
}

/// A function that there is.
#[derive(Clone, Debug)]
pub struct Tag<'a> {
    /// Its name.
    pub function: &'a str,
    /// When it was deployed, seconds since the Unix epoch.
    pub deployed_unix_s: u64,
    /// Bytes of its model; 0 where that is missing.
    pub bytes: u64,
    /// SHA-256 of its model, in hex.
    pub digest: String,
    /// What the model is.
    pub details: Details,
}

/// A function that has instances up.
#[derive(Clone, Debug)]
pub struct Loaded<'a> {
    /// The function.
    pub tag: Tag<'a>,
    /// Memory of its instances, bytes.
    pub memory_bytes: u64,
    /// When the last of them goes if nobody calls, seconds since the Unix epoch.
    pub expires_unix_s: u64,
    /// Tokens that a sequence may hold.
    pub context_tokens: u32,
}

/// A function, to be shown.
#[derive(Clone, Debug)]
pub struct Shown<'a> {
    /// The function.
    pub tag: Tag<'a>,
    /// What was loaded, if anything was.
    pub info: Option<&'a ModelInfo>,
    /// Tokens that a sequence may hold.
    pub context_tokens: u32,
    /// The function's system prompt.
    pub system: Option<&'a str>,
    /// Whether it gives vectors; else it gives text.
    pub embeds: bool,
}

fn tag(tag: &Tag<'_>) -> Value {
    let name = format!("{}:latest", tag.function);
    json!({
        "name": name,
        "model": name,
        "modified_at": rfc3339(tag.deployed_unix_s),
        "size": tag.bytes,
        "digest": tag.digest,
        "details": tag.details,
    })
}

fn body(value: &Value) -> Vec<u8> {
    let mut body = Vec::new();
    write_json(value, &mut body);
    body
}

/// Reply to `GET /api/tags`.
pub fn tags_reply(tags: &[Tag<'_>]) -> Vec<u8> {
    body(&json!({ "models": tags.iter().map(tag).collect::<Vec<_>>() }))
}

/// Reply to `GET /api/ps`.
pub fn loaded_reply(loaded: &[Loaded<'_>]) -> Vec<u8> {
    let models = loaded.iter().map(|loaded| {
        let mut model = tag(&loaded.tag);
        model["size"] = loaded.memory_bytes.into();
        model["size_vram"] = 0.into();
        model["expires_at"] = rfc3339(loaded.expires_unix_s).into();
        model["context_length"] = loaded.context_tokens.into();
        model
    });
    body(&json!({ "models": models.collect::<Vec<_>>() }))
}

/// Reply to `POST /api/show`.
pub fn show_reply(shown: &Shown<'_>) -> Vec<u8> {
    let capabilities = if shown.embeds { &["embedding"][..] } else { &["completion", "tools"] };
    body(&json!({
        "modelfile": format!("# The function `{}` of this box.\nFROM sha256:{}\n", shown.tag.function, shown.tag.digest),
        "parameters": format!("num_ctx {}", shown.context_tokens),
        "template": "",
        "system": shown.system.unwrap_or_default(),
        "modified_at": rfc3339(shown.tag.deployed_unix_s),
        "details": shown.tag.details,
        "model_info": model_info(shown),
        "capabilities": capabilities,
    }))
}

fn model_info(shown: &Shown<'_>) -> Map<String, Value> {
    let mut map = Map::new();
    let Some(info) = shown.info else { return map };
    let architecture = &info.architecture;
    map.insert("general.architecture".to_owned(), architecture.as_str().into());
    map.insert("general.basename".to_owned(), info.name.as_str().into());
    map.insert("general.parameter_count".to_owned(), info.parameters.into());
    map.insert(format!("{architecture}.context_length"), info.context_trained_tokens.into());
    map.insert(format!("{architecture}.embedding_length"), info.embedding_length.into());
    map.insert(format!("{architecture}.vocab_size"), info.vocabulary.into());
    map
}

/// Reply to `GET /api/version`: the release of Ollama whose API is spoken, and our own.
pub fn version_reply(own: &str) -> Vec<u8> {
    body(&json!({ "version": OLLAMA_VERSION, "ember": own }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> ModelInfo {
        ModelInfo {
            architecture: "llama".to_owned(),
            parameters: 134_515_008,
            embedding_length: 576,
            ..ModelInfo::default()
        }
    }

    fn one() -> Tag<'static> {
        let details = Details::new(Some(&info()));
        Tag { function: "a", deployed_unix_s: 0, bytes: 9, digest: "ab".to_owned(), details }
    }

    fn json(body: &[u8]) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn functions_are_listed_with_a_tag() {
        let tags = json(&tags_reply(&[one()]));
        let model = &tags["models"][0];
        assert_eq!((&model["name"], &model["size"]), (&"a:latest".into(), &9.into()));
        assert_eq!(model["details"]["parameter_size"], "134.52M");
        assert_eq!(model["modified_at"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn instances_are_listed_until_they_go() {
        let loaded = Loaded { tag: one(), memory_bytes: 7, expires_unix_s: 60, context_tokens: 512 };
        let model = json(&loaded_reply(&[loaded]))["models"][0].clone();
        assert_eq!((&model["size"], &model["context_length"]), (&7.into(), &512.into()));
        assert_eq!(model["expires_at"], "1970-01-01T00:01:00Z");
    }

    #[test]
    fn a_function_is_shown_with_what_is_known() {
        let info = info();
        let shown = Shown { tag: one(), info: Some(&info), context_tokens: 512, system: None, embeds: true };
        let all = json(&show_reply(&shown));
        assert_eq!(all["model_info"]["llama.embedding_length"], 576);
        assert_eq!(all["capabilities"], serde_json::json!(["embedding"]));
        let unknown = json(&show_reply(&Shown { info: None, embeds: false, ..shown }));
        assert_eq!(
            (&unknown["model_info"], &unknown["capabilities"][0]),
            (&serde_json::json!({}), &"completion".into())
        );
    }
}
