//! Tools in a prompt, and the grammar of calls.
//!
//! ```text
//!  the template knows tools:      it is given them as they were sent       calls are said as it was taught
//!  it does not, or in a form      a system message tells of them, results   calls are said between tags
//!  that nobody here reads:        are a user's, calls are an assistant's text
//! ```
//! So every chat model can be offered tools; whether it makes good use of them is its own. Forms that are read back: JSON
//! between `<tool_call>` tags (Qwen 2.5 and 3, Hermes and others), and a bare JSON object (Llama 3). A template that teaches
//! another (`[TOOL_CALLS]`, `<function=…>`) is told of tools in a message.

use crate::{
    error::invalid,
    schema::{self, Grammar},
};
use minijinja::value::{Value, ValueKind};
use sandbox_wire::runner::{Call, Failure, Message, Role, Tool, ToolCall, Tools};

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";
const PARAM: &str = "tools";
/// Most calls of one answer that must have one: a small model may never end by itself.
const CALLS_MAX: usize = 8;
/// The rule that a grammar of calls begins with; a schema's own rules are named `root`, or after its fields.
const CALLS_RULE: &str = "x-tool-calls";

/// How a model says a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`
    Tagged,
    /// `{"name": …, "parameters": {…}}`
    Bare,
}

impl Form {
    /// The form that a template teaches, if it is one that is read back.
    pub(crate) fn taught_by(template: &str) -> Option<Self> {
        let other = ["<function=", "<arg_key>", "[TOOL_CALLS]"].iter().any(|form| template.contains(form));
        match () {
            () if other || !template.contains("tools") => None,
            () if template.contains(OPEN) => Some(Self::Tagged),
            () if template.contains("\"parameters\": dictionary of argument") => Some(Self::Bare),
            () => None,
        }
    }

    const fn arguments_key(self) -> &'static str {
        match self {
            Self::Tagged => "arguments",
            Self::Bare => "parameters",
        }
    }

    /// What ends a single call.
    pub(crate) fn stop_after_one(self) -> Option<String> {
        (self == Self::Tagged).then(|| CLOSE.to_owned())
    }
}

/// A tool as a template is given it, each text changed by `shield`.
pub(crate) fn value(tool: &Tool, shield: &dyn Fn(&str) -> String) -> Result<Value, Failure> {
    parse(&tool.definition, shield).map_err(|error| invalid(PARAM, format!("`{}` is not JSON: {error}", tool.name)))
}

/// A call as a template is given it: arguments are an object where they are JSON.
pub(crate) fn call_value(call: &ToolCall, shield: &dyn Fn(&str) -> String) -> Value {
    let arguments = parse(&call.arguments, shield).unwrap_or_else(|_| Value::from(shield(&call.arguments)));
    let function = Value::from_pairs([("name", Value::from(shield(&call.name))), ("arguments", arguments)]);
    let id = Value::from(shield(&call.id));
    Value::from_pairs([("id", id), ("type", Value::from("function")), ("function", function)])
}

fn parse(json: &str, shield: &dyn Fn(&str) -> String) -> Result<Value, serde_json::Error> {
    serde_json::from_str::<Value>(json).map(|value| shielded(&value, shield))
}

/// The same value, each text in it changed. As deep as the JSON that it was read from, of which the parser allows 128 levels.
fn shielded(value: &Value, shield: &dyn Fn(&str) -> String) -> Value {
    match value.kind() {
        ValueKind::String => Value::from(shield(value.as_str().unwrap_or_default())),
        ValueKind::Seq => value.try_iter().into_iter().flatten().map(|item| shielded(&item, shield)).collect(),
        ValueKind::Map => {
            let entry = |key: Value| {
                let item = value.get_item(&key).unwrap_or_default();
                (shielded(&key, shield), shielded(&item, shield))
            };
            Value::from_pairs(value.try_iter().into_iter().flatten().map(entry))
        }
        _ => value.clone(),
    }
}

/// Messages as a template can render them that knows nothing of tools.
pub(crate) fn told(messages: &[Message], tools: Option<&Tools>) -> Vec<Message> {
    let mut told: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    for message in messages {
        match message.role {
            Role::Tool => tell_result(&message.content, &mut told),
            _ => told.push(Message { content: with_calls(message), tool_calls: Vec::new(), ..message.clone() }),
        }
    }
    let Some(tools) = tools else { return told };
    let text = instructions(tools);
    match told.first_mut().filter(|first| first.role == Role::System) {
        Some(system) => system.content = format!("{}\n\n{text}", system.content),
        None => told.insert(0, Message::new(Role::System, text)),
    }
    told
}

/// Results that follow each other are one message, since many templates want turns to alternate.
fn tell_result(result: &str, told: &mut Vec<Message>) {
    let result = format!("<tool_response>\n{result}\n</tool_response>");
    match told.last_mut().filter(|last| last.role == Role::User && last.content.ends_with("</tool_response>")) {
        Some(last) => last.content = format!("{}\n{result}", last.content),
        None => told.push(Message::new(Role::User, result)),
    }
}

fn with_calls(message: &Message) -> String {
    let calls = message.tool_calls.iter().map(|call| {
        let name = serde_json::Value::from(call.name.as_str());
        format!("{OPEN}\n{{\"name\": {name}, \"arguments\": {}}}\n{CLOSE}", call.arguments)
    });
    let content = Some(message.content.clone()).filter(|content| !content.is_empty());
    content.into_iter().chain(calls).collect::<Vec<_>>().join("\n")
}

fn instructions(tools: &Tools) -> String {
    let definitions: Vec<&str> = tools.definitions.iter().map(|tool| tool.definition.as_str()).collect();
    format!(
        "You can call these tools, each a function given as JSON:\n<tools>\n{}\n</tools>\nTo call one, answer with its name \
         and its arguments as a JSON object between tags, and nothing else:\n{OPEN}\n{{\"name\": \"NAME\", \"arguments\": \
         {{}}}}\n{CLOSE}\nThe result comes between <tool_response> tags. Where no tool helps, answer in words.",
        definitions.join("\n")
    )
}

/// The grammar of an answer that must call; `None` where it may.
pub(crate) fn grammar(tools: &Tools, form: Form) -> Result<Option<Grammar>, Failure> {
    let callable = |tool: &&Tool| match &tools.call {
        Call::May => false,
        Call::Must => true,
        Call::Named(name) => tool.name == *name,
    };
    let callable: Vec<&Tool> = tools.definitions.iter().filter(callable).collect();
    if tools.call == Call::May {
        return Ok(None);
    }
    if callable.is_empty() {
        return Err(invalid("tool_choice", "there is no tool of that name"));
    }
    let calls: Vec<String> = callable.iter().enumerate().map(|(at, tool)| call_schema(at, tool, form)).collect();
    let text = schema::convert(&format!(r#"{{"anyOf":[{}]}}"#, calls.join(",")), PARAM)?;
    let one = match form {
        Form::Tagged => format!(r#""{OPEN}\n" root "\n{CLOSE}""#),
        Form::Bare => "root".to_owned(),
    };
    let more = CALLS_MAX - 1;
    let all = if tools.parallel && form == Form::Tagged { format!(r#"{one} ("\n" {one}){{0,{more}}}"#) } else { one };
    Ok(Some(Grammar { text: format!("{text}\n{CALLS_RULE} ::= {all}\n"), root: CALLS_RULE, param: PARAM }))
}

/// The schema of a call of the tool at place `at`.
fn call_schema(at: usize, tool: &Tool, form: Form) -> String {
    let (key, name) = (form.arguments_key(), serde_json::Value::from(tool.name.as_str()));
    let parameters = tool.parameters.as_deref().unwrap_or(r#"{"type":"object"}"#);
    let parameters = rooted(parameters, &format!("/anyOf/{at}/properties/{key}"));
    format!(
        r#"{{"type":"object","properties":{{"name":{{"const":{name}}},"{key}":{parameters}}},"required":["name","{key}"],"additionalProperties":false}}"#
    )
}

/// A schema whose references `#/…` point to where it stands now. In JSON a key's closing quote is followed by its colon, and
/// a quote within a text has a backslash before it, so what is found is a reference.
fn rooted(schema: &str, place: &str) -> String {
    const KEY: &str = "\"$ref\"";
    let (mut out, mut rest) = (String::with_capacity(schema.len()), schema);
    while let Some(at) = rest.find(KEY) {
        let (before, after) = rest.split_at(at + KEY.len());
        out.push_str(before);
        rest = after;
        let value = after.trim_start().strip_prefix(':').map(str::trim_start);
        if let Some(reference) = value.and_then(|value| value.strip_prefix("\"#")) {
            out.push_str(":\"#");
            out.push_str(place);
            rest = reference;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str, parameters: Option<&str>) -> Tool {
        let definition = format!(r#"{{"type": "function", "function": {{"name": "{name}"}}}}"#);
        Tool { name: name.to_owned(), parameters: parameters.map(str::to_owned), definition }
    }

    fn tools(call: Call) -> Tools {
        let city = r##"{"type": "object", "properties": {"city": {"$ref" : "#/$defs/C"}}, "$defs": {"C": {"enum": ["Oslo"]}}}"##;
        Tools { definitions: vec![tool("time", None), tool("weather", Some(city))], call, parallel: true }
    }

    #[test]
    fn forms_are_known_by_their_templates() {
        assert_eq!(Form::taught_by("{% if tools %}<tool_call>"), Some(Form::Tagged));
        assert_eq!(Form::taught_by("{{ tools }} \"parameters\": dictionary of argument name"), Some(Form::Bare));
        for other in
            ["{{ messages }}", "{% if tools %}[TOOL_CALLS]", "{% if tools %}<tool_call><function=x>", "<tool_call>"]
        {
            assert_eq!(Form::taught_by(other), None, "{other}");
        }
    }

    #[test]
    fn a_call_that_must_be_has_a_grammar() {
        assert!(grammar(&tools(Call::May), Form::Tagged).unwrap().is_none());
        let all = grammar(&tools(Call::Must), Form::Tagged).unwrap().unwrap();
        assert!(all.text.contains("Oslo") && all.text.contains("{0,7}"), "{}", all.text);
        let one = grammar(&tools(Call::Named("time".to_owned())), Form::Bare).unwrap().unwrap();
        assert!(one.text.contains("x-tool-calls ::= root") && !one.text.contains("Oslo"), "{}", one.text);
        assert!(grammar(&tools(Call::Named("none".to_owned())), Form::Bare).is_err());
    }

    #[test]
    fn references_are_moved_and_texts_are_not() {
        let moved = rooted(r##"{"a": {"$ref" : "#/$defs/X"}, "b": "say \"$ref\":\"#/x\"", "$ref":"#"}"##, "/p");
        assert_eq!(moved, r##"{"a": {"$ref":"#/p/$defs/X"}, "b": "say \"$ref\":\"#/x\"", "$ref":"#/p"}"##);
    }

    #[test]
    fn a_template_without_tools_is_told_of_them() {
        let call = ToolCall { id: "1".to_owned(), name: "time".to_owned(), arguments: "{}".to_owned() };
        let chat = [
            Message::new(Role::User, "What time is it?"),
            Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") },
            Message::new(Role::Tool, "noon"),
            Message::new(Role::Tool, "or later"),
        ];
        let told = told(&chat, Some(&tools(Call::May)));
        assert_eq!(
            told.iter().map(|m| m.role).collect::<Vec<_>>(),
            [Role::System, Role::User, Role::Assistant, Role::User]
        );
        assert!(told[0].content.contains(r#"{"name": "weather"}"#), "{}", told[0].content);
        assert_eq!(told[2].content, "<tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>");
        assert!(told[3].content.contains("noon") && told[3].content.contains("or later"));
        let system = [Message::new(Role::System, "Be brief."), Message::new(Role::User, "x")];
        assert!(super::told(&system, Some(&tools(Call::May)))[0].content.starts_with("Be brief.\n\nYou can call"));
    }

    #[test]
    fn texts_within_tools_are_shielded() {
        let mut tool = tool("x", None);
        tool.definition = "{\"function\": {\"name\": \"x\", \"d\\u0061ta\": [\"\\u003cend\\u003e\", 1]}}".to_owned();
        let value = value(&tool, &|text| text.replace("<end>", "<|end>")).unwrap();
        assert_eq!(value.to_string(), "{'function': {'name': 'x', 'data': ['<|end>', 1]}}");
    }
}
