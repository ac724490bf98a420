//! The messages of a chat.

use crate::{
    field::{Fault, Field, Kind, Object, Read},
    tool,
};
use sandbox_wire::runner::{Message, Role};

/// A chat's messages: at least one, each of text alone.
pub(crate) fn messages(list: Field<'_>) -> Read<Vec<Message>> {
    let messages = list.list(message)?;
    if messages.is_empty() { Err(Fault::here("expected at least one message")) } else { Ok(messages) }
}

/// One message.
pub(crate) fn message(field: Field<'_>) -> Read<Message> {
    let object = field.object()?;
    let role = object.require("role", role)?;
    object.get("function_call", |_| Err::<(), _>(Fault::here("not supported; use `tool_calls`")))?;
    object.get("audio", |_| Err::<(), _>(Fault::here("audio is not supported")))?;
    let tool_calls = object.get("tool_calls", tool::calls)?.unwrap_or_default();
    if role != Role::Assistant && !tool_calls.is_empty() {
        return Err(Fault::here("only an assistant calls tools").within("tool_calls"));
    }
    Ok(Message {
        role,
        content: content(&object, role)?,
        name: object.get("name", Field::string)?,
        tool_calls,
        tool_call_id: object.get("tool_call_id", Field::string)?,
    })
}

fn role(field: Field<'_>) -> Read<Role> {
    match &*field.cow()? {
        "system" | "developer" => Ok(Role::System),
        "user" => Ok(Role::User),
        "assistant" => Ok(Role::Assistant),
        "tool" => Ok(Role::Tool),
        other => Err(Fault::here(format!(
            "`{}` is not a role: use system, developer, user, assistant or tool",
            other.escape_debug()
        ))),
    }
}

/// An assistant may have said nothing; all others say something.
fn content(message: &Object<'_>, role: Role) -> Read<String> {
    match role {
        Role::Assistant => Ok(message.get("content", text)?.unwrap_or_default()),
        Role::System | Role::User | Role::Tool => message.require("content", text),
    }
}

/// A string, or a list of text parts, which become lines.
fn text(field: Field<'_>) -> Read<String> {
    match field.kind() {
        Kind::String => field.string(),
        Kind::List => Ok(field.list(part)?.join("\n")),
        _ => Err(field.expected("a string or a list of text parts")),
    }
}

fn part(field: Field<'_>) -> Read<String> {
    let object = field.object()?;
    object.require("type", |kind| match &*kind.cow()? {
        "text" => Ok(()),
        other => Err(Fault::here(format!("only `text` parts are supported, got `{}`", other.escape_debug()))),
    })?;
    object.require("text", Field::string)
}
