//! Functions to deploy, and requests to them.

use crate::tree;
use serde_json::{Value, json};

/// A manifest in the making.
#[derive(Clone, Debug)]
pub struct Function {
    name: String,
    model: String,
    task: &'static str,
    limits: String,
    scale: String,
    prompt: String,
}

/// The function `assistant` on the default model.
pub fn assistant() -> Function {
    Function::named("assistant")
}

impl Function {
    /// A chat function on the default model.
    pub fn named(name: &str) -> Self {
        let model = tree::model().display().to_string();
        let (limits, scale, prompt) = <(String, String, String)>::default();
        Self { name: name.to_owned(), model, task: "chat", limits, scale, prompt }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Another model: a path, or `sha256:HEX`.
    pub fn model(mut self, model: impl std::fmt::Display) -> Self {
        self.model = model.to_string();
        self
    }

    /// `chat`, `completion` or `embedding`.
    pub fn task(mut self, task: &'static str) -> Self {
        self.task = task;
        self
    }

    /// A line of `[limits]`.
    pub fn limit(mut self, line: &str) -> Self {
        self.limits += &format!("{line}\n");
        self
    }

    /// A line of `[scale]`.
    pub fn scale(mut self, line: &str) -> Self {
        self.scale += &format!("{line}\n");
        self
    }

    /// The system prompt, of characters that TOML does not escape.
    pub fn system(mut self, prompt: &str) -> Self {
        self.prompt = format!("[prompt]\nsystem = \"{prompt}\"\n");
        self
    }

    /// The manifest.
    pub fn to_toml(&self) -> String {
        let Self { name, model, task, limits, scale, prompt } = self;
        let head = format!("name = \"{name}\"\nmodel = \"{model}\"\ntask = \"{task}\"\n");
        format!("{head}[limits]\n{limits}[scale]\n{scale}{prompt}")
    }
}

/// A chat request of one user message, greedy, short, and answered alike however often it is asked; `with` overrides and
/// adds fields.
pub fn chat(function: &str, message: &str, with: Value) -> Value {
    let messages = json!([{"role": "user", "content": message}]);
    let mut request = json!({"model": function, "messages": messages, "temperature": 0, "max_tokens": 24});
    request["cache_prompt"] = false.into();
    let fields = with.as_object().expect("fields to set").clone();
    request.as_object_mut().expect("a request is an object").extend(fields);
    request
}
