//! `response_format`: what the produced text must conform to.

use crate::field::{Fault, Field, Object, Read};
use sandbox_wire::runner::Constraint;

/// Longest JSON schema.
const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Deepest JSON schema: what turns it into a grammar recurses.
const SCHEMA_DEPTH_MAX: usize = 32;

/// What `response_format` asks for.
pub(crate) fn constraint(field: Field<'_>) -> Read<Constraint> {
    let object = field.object()?;
    match &*object.require("type", Field::cow)? {
        "text" => Ok(Constraint::None),
        "json_object" => json_object(&object),
        "json_schema" => {
            object.require("json_schema", |inner| inner.object()?.require("schema", schema)).map(Constraint::JsonSchema)
        }
        other => {
            let message = format!("`{}` is none of text, json_object, json_schema", other.escape_debug());
            Err(Fault::here(message).within("type"))
        }
    }
}

/// llama-server's form takes a schema here too.
fn json_object(object: &Object<'_>) -> Read<Constraint> {
    Ok(object.get("schema", schema)?.map_or(Constraint::JsonObject, Constraint::JsonSchema))
}

/// A JSON schema, of bounded size and depth.
pub(crate) fn schema(field: Field<'_>) -> Read<String> {
    field.object()?;
    let text = field.text();
    if text.len() > SCHEMA_BYTES_MAX {
        return Err(Fault::here(format!("{} bytes; the longest schema is {SCHEMA_BYTES_MAX}", text.len())));
    }
    if depth(text) > SCHEMA_DEPTH_MAX {
        return Err(Fault::here(format!("nested deeper than {SCHEMA_DEPTH_MAX} levels")));
    }
    Ok(text.to_owned())
}

/// How deep objects and lists lie in each other in `json`, which is known to be valid.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let check = |json: &str, expected: usize| assert_eq!(depth(json), expected, "{json}");
        check("1", 0);
        check("{}", 1);
        check(r#"{"a": [{}, []]}"#, 3);
        check(r#"{"[[[": "{\"[["}"#, 1);
    }
}
