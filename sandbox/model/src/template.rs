//! Chat templates: messages in, the text of a prompt out.
//!
//! The template comes from the model file and is untrusted, as are the messages. It runs on fuel, which bounds its steps
//! and its memory; its output is bounded; it sees the messages and nothing else: no files, no clock, no other templates.
//! Templates are written for Python's jinja2, so Python's string and dict methods, `raise_exception`, `strftime_now` and
//! its `tojson` are there. A model without a template, or with one that does not compile, gets ChatML.
//!
//! A template that takes tools is given them where it teaches a form of calls that is read back ([`crate::tools`]).
//!
//! Left out: documents, and `{% generation %}`, which only training needs.

use crate::{
    strftime::strftime_now,
    tools::{self, Form},
};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, context, syntax::SyntaxConfig, value::Value};
use sandbox_wire::runner::{Message, Role, Tool};
use std::io;

const FUEL: u64 = 4_000_000;
const TEMPLATE_BYTES_MAX: usize = 256 << 10;
const RENDERED_BYTES_MAX: usize = 32 << 20;
const NAME: &str = "chat";

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    begin_text: String,
    end_text: String,
    from_model: bool,
    form: Option<Form>,
}

/// Why messages could not be rendered.
#[derive(Debug, thiserror::Error)]
#[error("the chat template refuses the messages: {reason}")]
pub(crate) struct RenderError {
    reason: String,
}

impl Template {
    /// The template of a model, or ChatML.
    pub(crate) fn new(source: Option<String>, begin_text: String, end_text: String) -> Self {
        let mut environment = environment();
        let source = source.filter(|source| source.len() <= TEMPLATE_BYTES_MAX);
        let taught = source.as_deref().and_then(Form::taught_by);
        let from_model = source.is_some_and(|source| environment.add_template_owned(NAME, source).is_ok());
        if !from_model {
            environment.add_template(NAME, CHATML).expect("ChatML compiles");
        }
        let mut template = Self { environment, begin_text, end_text, from_model, form: None };
        template.form = taught.filter(|_| template.shows_tools());
        template
    }

    /// The form of calls that it teaches; without one it is given no tools.
    pub(crate) fn form(&self) -> Option<Form> {
        self.form
    }

    /// Whether a tool that it is given stands in what it renders.
    fn shows_tools(&self) -> bool {
        const PROBE: &str = "probe_of_tools";
        let definition = format!(
            r#"{{"type": "function", "function": {{"name": "{PROBE}", "description": "", "parameters": {{"type": "object", "properties": {{}}}}}}}}"#
        );
        let tool = Tool { name: PROBE.to_owned(), parameters: None, definition };
        let tools = tools::value(&tool, &str::to_owned).map(|tool| vec![tool]).ok();
        let rendered = self.render(&[Message::new(Role::User, "Hello")], tools, true, &str::to_owned);
        rendered.is_ok_and(|text| text.contains(PROBE))
    }

    /// Whether the template is the model's own.
    pub(crate) fn is_from_model(&self) -> bool {
        self.from_model
    }

    /// Renders messages, and tools whose texts are shielded already; with `add_generation_prompt` up to where the answer
    /// begins. `shield` changes each text of people's.
    pub(crate) fn render(
        &self,
        messages: &[Message],
        tools: Option<Vec<Value>>,
        add_generation_prompt: bool,
        shield: &dyn Fn(&str) -> String,
    ) -> Result<String, RenderError> {
        let context = context! {
            messages => messages.iter().map(|each| message(each, shield)).collect::<Vec<Value>>(),
            add_generation_prompt => add_generation_prompt,
            bos_token => self.begin_text.as_str(),
            eos_token => self.end_text.as_str(),
            tools => tools,
            documents => (),
        };
        let template = self.environment.get_template(NAME).expect("added when made");
        let mut out = Bounded(Vec::new());
        template.render_captured_to(context, &mut out).map_err(|error| RenderError { reason: reason(&error) })?;
        String::from_utf8(out.0).map_err(|error| RenderError { reason: error.to_string() })
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the usual delimiters are valid"));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| strftime_now(format));
    environment.add_filter("tojson", to_json);
    environment
}

fn message(message: &Message, shield: &dyn Fn(&str) -> String) -> Value {
    let text = |text: &str| Value::from(shield(text));
    let mut fields = vec![("role", Value::from(message.role.as_str())), ("content", text(&message.content))];
    fields.extend(message.name.as_deref().map(|name| ("name", text(name))));
    fields.extend(message.tool_call_id.as_deref().map(|id| ("tool_call_id", text(id))));
    if !message.tool_calls.is_empty() {
        let calls: Vec<Value> = message.tool_calls.iter().map(|call| tools::call_value(call, shield)).collect();
        fields.push(("tool_calls", Value::from(calls)));
    }
    Value::from_pairs(fields)
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// As Python's `json.dumps`: a space after commas and colons, nothing escaped for HTML.
fn to_json(value: &Value) -> Result<String, Error> {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, PythonFormatter);
    serde::Serialize::serialize(value, &mut serializer).map_err(|error| unserializable(&error))?;
    String::from_utf8(out).map_err(|error| unserializable(&error))
}

fn unserializable(error: &dyn std::error::Error) -> Error {
    Error::new(ErrorKind::BadSerialization, error.to_string())
}

struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Output that refuses to grow without end.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > RENDERED_BYTES_MAX {
            return Err(io::Error::other(format!("more than {RENDERED_BYTES_MAX} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a caller may be told of an error.
fn reason(error: &Error) -> String {
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "rendering takes too long".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sandbox_wire::runner::ToolCall;

    fn user(content: &str) -> Message {
        Message::new(Role::User, content)
    }

    fn render(template: &Template, message: Message, add_generation_prompt: bool) -> Result<String, RenderError> {
        template.render(&[message], None, add_generation_prompt, &str::to_owned)
    }

    fn template(source: &str) -> Template {
        Template::new(Some(source.into()), "<s>".into(), "</s>".into())
    }

    #[track_caller]
    fn check(source: &str, content: &str, expected: &str) {
        let template = template(source);
        assert!(template.is_from_model(), "does not compile: {source}");
        assert_eq!(render(&template, user(content), true).unwrap(), expected);
    }

    #[test]
    fn chatml_is_the_fallback() {
        for source in [None, Some("{% for %}".to_owned()), Some("{% generation %}".into()), Some("x".repeat(1 << 20))] {
            let template = Template::new(source, String::new(), String::new());
            assert!(!template.is_from_model());
            let rendered = render(&template, user("hi"), true).unwrap();
            assert_eq!(rendered, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
            assert!(!render(&template, user("hi"), false).unwrap().ends_with("assistant\n"));
        }
    }

    #[test]
    fn python_is_spoken() {
        check("{{ bos_token }}{{ messages[0]['content'].strip().upper() }}{{ eos_token }}", " hi ", "<s>HI</s>");
        check("{{ messages[0].content.split(' ')[-1].title() }}", "a bc", "Bc");
        check("{{ messages[0].content.lstrip('x').rstrip('y').replace('b', 'c').lower() }}", "xxaBby", "abc");
        check(
            "{% if messages[0].content.startswith('a') and messages[0].content.endswith('b') %}yes{% endif %}",
            "ab",
            "yes",
        );
        check("{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}", "x", "role=user;content=x;");
        check("{{ messages[0].get('tool_calls', 'none') }}{{ messages[0].keys() | list | length }}", "x", "none2");
        check(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% break %}{% endfor %}{{ ns.n }}",
            "x",
            "1",
        );
        check(
            "{% if tools is not none %}tools{% endif %}{% if x is defined %}x{% endif %}{{ strftime_now('%d %b %Y') }}",
            "x",
            "26 Jul 2024",
        );
        check("{% for m in messages[::-1] %}{{ loop.index0 }}{% if not loop.last %},{% endif %}{% endfor %}", "x", "0");
        check("{%- if true %}\n  a\n{%- endif %}\n", "x", "  a");
    }

    #[test]
    fn json_is_as_python_writes_it() {
        check("{{ messages | tojson }}", "<é'&>", r#"[{"role": "user", "content": "<é'&>"}]"#);
    }

    /// What a template that knows tools does with them, in the manner of Qwen's.
    const TOOLS: &str = "{% if tools %}{% for t in tools %}{{ t | tojson }};{% endfor %}{% endif %}{% for m in messages %}\
{{ m.role }}:{{ m.content }}{% for c in m.tool_calls %}<tool_call>{{ c.function.name }}{{ c.function.arguments | tojson }}</tool_call>{% endfor %}|{% endfor %}";

    #[test]
    fn tools_are_given_to_a_template_that_shows_them() {
        let template = template(TOOLS);
        assert_eq!(template.form(), Some(Form::Tagged));
        let call =
            ToolCall { id: "1".to_owned(), name: "f".to_owned(), arguments: r#"{"b": 1, "a": "<x>"}"#.to_owned() };
        let said = [user("hi"), Message { tool_calls: vec![call], ..Message::new(Role::Assistant, "") }];
        let definition = r#"{"type": "function", "function": {"name": "f", "parameters": {}}}"#;
        let tool = Tool { name: "f".to_owned(), parameters: None, definition: definition.to_owned() };
        let shield = |text: &str| text.replace("<x>", "<|x>");
        let tools = Some(vec![tools::value(&tool, &shield).unwrap()]);
        let expected = format!("{definition};user:hi|assistant:<tool_call>f{{\"b\": 1, \"a\": \"<|x>\"}}</tool_call>|");
        assert_eq!(template.render(&said, tools, true, &shield).unwrap(), expected);
    }

    #[test]
    fn a_template_that_hides_tools_is_given_none() {
        for source in
            ["{# tools <tool_call> #}{{ messages[0].content }}", "{{ raise_exception('no') }} tools <tool_call>", "x"]
        {
            assert_eq!(template(source).form(), None, "{source}");
        }
    }

    #[test]
    fn a_template_may_refuse() {
        let error = render(&template("{{ raise_exception('roles must alternate') }}"), user("x"), true).unwrap_err();
        assert_eq!(error.to_string(), "the chat template refuses the messages: roles must alternate");
    }

    #[test]
    fn hostile_templates_end() {
        let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        let recursive = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
        let huge = "{{ 'x' * 10000000000 }}";
        let doubling =
            "{% set ns = namespace(t='xxxxxxxx') %}{% for a in range(99) %}{% set ns.t = ns.t + ns.t %}{% endfor %}";
        for source in [endless, recursive, huge, doubling, "{% include 'chat' %}", "{{ messages[0].nothing.at.all }}"] {
            assert!(render(&template(source), user("x"), true).is_err(), "{source}");
        }
    }
}
