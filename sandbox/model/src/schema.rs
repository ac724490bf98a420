//! JSON schemas to grammars.
//!
//! A schema is the caller's and may be hostile. llama.cpp turns it into a grammar by recursion, so its size and its depth
//! are bounded here before llama.cpp sees it: nesting of JSON, and of groups within a regular expression.

use crate::error::invalid;
use sandbox_wire::runner::{Constraint, Failure};
use serde_json::Value;

const SCHEMA_BYTES_MAX: usize = 64 << 10;
const SCHEMA_DEPTH_MAX: usize = 64;
const PATTERN_GROUPS_MAX: usize = 64;
const PARAM: &str = "response_format";

/// A grammar in llama.cpp's notation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grammar {
    pub(crate) text: String,
    /// The rule that it begins with.
    pub(crate) root: &'static str,
    /// The field that asked for it.
    pub(crate) param: &'static str,
}

/// The grammar that a constraint asks for.
pub(crate) fn grammar(constraint: &Constraint) -> Result<Option<Grammar>, Failure> {
    let text = match constraint {
        Constraint::None => return Ok(None),
        Constraint::JsonObject => convert(r#"{"type":"object"}"#, PARAM)?,
        Constraint::JsonSchema(schema) => convert(schema, PARAM)?,
    };
    Ok(Some(Grammar { text, root: "root", param: PARAM }))
}

/// The rules of a schema, which came in the field `param`; the first is named `root`.
pub(crate) fn convert(schema: &str, param: &str) -> Result<String, Failure> {
    check(schema).map_err(|message| invalid(param, message))?;
    llama_cpp_2::json_schema_to_grammar(schema)
        .map_err(|_| invalid(param, "the JSON schema uses something that cannot be turned into a grammar"))
}

fn check(schema: &str) -> Result<(), String> {
    if schema.len() > SCHEMA_BYTES_MAX {
        return Err(format!("the JSON schema has {} bytes; at most {SCHEMA_BYTES_MAX}", schema.len()));
    }
    let value: Value = serde_json::from_str(schema).map_err(|error| format!("the JSON schema is not JSON: {error}"))?;
    if !value.is_object() {
        return Err("the JSON schema is not an object".to_owned());
    }
    check_value(&value, 0)
}

/// Recursion is bounded twice: by [`SCHEMA_DEPTH_MAX`], and by the parser that made `value`.
fn check_value(value: &Value, depth: usize) -> Result<(), String> {
    if depth > SCHEMA_DEPTH_MAX {
        return Err(format!("the JSON schema is nested deeper than {SCHEMA_DEPTH_MAX}"));
    }
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| check_value(item, depth + 1)),
        Value::Object(fields) => fields.values().try_for_each(|field| check_value(field, depth + 1)),
        Value::String(text) if text.matches('(').count() > PATTERN_GROUPS_MAX => {
            Err(format!("a text of the JSON schema has more than {PATTERN_GROUPS_MAX} groups"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schema(text: impl Into<String>) -> Result<Option<String>, Failure> {
        Ok(grammar(&Constraint::JsonSchema(text.into()))?.map(|grammar| grammar.text))
    }

    #[test]
    fn schemas_become_grammars() {
        assert_eq!(grammar(&Constraint::None), Ok(None));
        assert!(grammar(&Constraint::JsonObject).unwrap().unwrap().text.contains("root ::="));
        let person = r#"{"type":"object","properties":{"name":{"type":"string"}},"required":["name"]}"#;
        assert!(schema(person).unwrap().unwrap().contains("name"));
    }

    #[test]
    fn hostile_schemas_are_refused_by_name() {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(100), "}".repeat(100));
        let groups = format!(r#"{{"type":"string","pattern":"^{}{}$"}}"#, "(".repeat(1000), ")".repeat(1000));
        let long = format!(r#"{{"title":"{}"}}"#, "x".repeat(SCHEMA_BYTES_MAX));
        let unknown = r#"{"type":"nonsense"}"#.to_owned();
        let nul = "{\"type\":\"\0\"}".to_owned();
        for bad in [deep, groups, long, unknown, nul, "[]".into(), "{".into(), "[".repeat(100_000)] {
            let failure = schema(bad.clone()).unwrap_err();
            assert!(matches!(&failure, Failure::Invalid { param, .. } if param == PARAM), "{bad}: {failure:?}");
        }
    }
}
