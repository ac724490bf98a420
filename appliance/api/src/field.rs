//! A JSON request, read field by field.
//!
//! A value is kept as the text it came as until someone who knows its type reads it, so that an error can say which
//! field is wrong and what was expected there, fields nobody knows cost nothing, and a list of numbers never becomes a
//! tree. Errors find their path on the way out: the reader of a value knows nothing of where it stands, and each level
//! above puts its own name in front ([`Fault::within`]).

mod bounded;

use bounded::{Text, elements, entries};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, ops::RangeInclusive};

/// Most keys of an object, such as a `logit_bias`.
const KEYS_MAX: usize = 1024;
/// Most elements of a list of anything but tokens.
const ELEMENTS_MAX: usize = 16 << 10;
/// Most tokens of a list: the longest context there may be.
const TOKENS_MAX: usize = 1 << 20;

/// What is wrong with a value, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// As in `messages[2].content`; empty for the body itself.
    pub(crate) path: String,
    /// What is wrong.
    pub(crate) message: String,
}

/// What reading a value gives.
pub(crate) type Read<T> = Result<T, Fault>;

impl Fault {
    /// A fault of the value being read.
    pub(crate) fn here(message: impl Into<String>) -> Self {
        Self { path: String::new(), message: message.into() }
    }

    /// The same fault as seen from the value that holds this one as `name`.
    pub(crate) fn within(self, name: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        Self { path: format!("{name}{dot}{}", self.path), ..self }
    }
}

/// A value that nobody has read yet.
#[derive(Clone, Copy)]
pub(crate) struct Field<'a>(&'a RawValue);

/// The fields of an object. Of two with one name the later counts.
pub(crate) struct Object<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Object<'a> {
    /// The object that a request's body is.
    pub(crate) fn from_body(body: &'a [u8]) -> Read<Self> {
        if body.trim_ascii().is_empty() {
            return Err(Fault::here("the request body is empty; send a JSON object"));
        }
        let raw = serde_json::from_slice::<&RawValue>(body)
            .map_err(|error| Fault::here(format!("the request body is not JSON: {error}")))?;
        Field(raw).object()
    }

    /// An object without fields.
    pub(crate) const fn empty() -> Self {
        Self(Vec::new())
    }

    /// The field `name`; `null` is as good as none.
    pub(crate) fn find(&self, name: &str) -> Option<Field<'a>> {
        let (_, value) = self.0.iter().rfind(|(key, _)| key == name)?;
        Some(Field(value)).filter(|field| field.kind() != Kind::Null)
    }

    /// What `read` makes of the field `name`, if it is there.
    pub(crate) fn get<T>(&self, name: &str, read: impl FnOnce(Field<'a>) -> Read<T>) -> Read<Option<T>> {
        self.find(name).map(read).transpose().map_err(|fault| fault.within(name))
    }

    /// What `read` makes of the field `name`, which has to be there.
    pub(crate) fn require<T>(&self, name: &str, read: impl FnOnce(Field<'a>) -> Read<T>) -> Read<T> {
        self.get(name, read)?.ok_or_else(|| Fault::here("this field is needed").within(name))
    }

    /// All fields.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, Field<'a>)> {
        self.0.iter().map(|(name, value)| (&**name, Field(value)))
    }
}

/// What a value is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `null`
    Null,
    /// `true` or `false`
    Boolean,
    /// A number.
    Number,
    /// A string.
    String,
    /// A list.
    List,
    /// An object.
    Object,
}

impl<'a> Field<'a> {
    /// What the value is.
    pub(crate) fn kind(self) -> Kind {
        match self.text().as_bytes().first() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::List,
            Some(b'"') => Kind::String,
            Some(b't' | b'f') => Kind::Boolean,
            Some(b'n') | None => Kind::Null,
            Some(_) => Kind::Number,
        }
    }

    /// What the first element of a list is.
    pub(crate) fn kind_of_first(self) -> Option<Kind> {
        let inside = self.text().strip_prefix('[')?.trim_start();
        let first = inside.as_bytes().first().filter(|byte| **byte != b']')?;
        Some(match first {
            b'"' => Kind::String,
            b'[' => Kind::List,
            b'-' | b'0'..=b'9' => Kind::Number,
            b'{' => Kind::Object,
            b't' | b'f' => Kind::Boolean,
            _ => Kind::Null,
        })
    }

    /// The value's own text.
    pub(crate) fn text(self) -> &'a str {
        self.0.get()
    }

    /// A string.
    pub(crate) fn string(self) -> Read<String> {
        self.cow().map(Cow::into_owned)
    }

    /// A string, borrowed where it holds no escapes.
    pub(crate) fn cow(self) -> Read<Cow<'a, str>> {
        self.must_be(Kind::String, "a string")?;
        serde_json::from_str::<Text<'_>>(self.text()).map(|text| text.0).map_err(|error| Fault::here(reason(&error)))
    }

    /// `true` or `false`.
    pub(crate) fn boolean(self) -> Read<bool> {
        self.must_be(Kind::Boolean, "true or false")?;
        Ok(self.text() == "true")
    }

    /// A whole number within `range`.
    pub(crate) fn integer(self, range: RangeInclusive<i64>) -> Read<i64> {
        self.must_be(Kind::Number, "a whole number")?;
        let number = self.text().parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.outside("a whole number from", range.start(), range.end()))
    }

    /// A number within `range`.
    pub(crate) fn number(self, range: RangeInclusive<f32>) -> Read<f32> {
        self.must_be(Kind::Number, "a number")?;
        let number = self.text().parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| self.outside("a number from", range.start(), range.end()))
    }

    /// An object.
    pub(crate) fn object(self) -> Read<Object<'a>> {
        self.must_be(Kind::Object, "an object")?;
        entries(self.text(), KEYS_MAX).map(Object).map_err(|error| Fault::here(reason(&error)))
    }

    /// A list, each element of which `read` reads.
    pub(crate) fn list<T>(self, read: impl Fn(Field<'a>) -> Read<T>) -> Read<Vec<T>> {
        self.must_be(Kind::List, "a list")?;
        let values: Vec<&RawValue> =
            elements(self.text(), ELEMENTS_MAX).map_err(|error| Fault::here(reason(&error)))?;
        let read_at = |(at, value)| read(Field(value)).map_err(|fault| fault.within(&format!("[{at}]")));
        values.into_iter().enumerate().map(read_at).collect()
    }

    /// A list of tokens.
    pub(crate) fn tokens(self) -> Read<Vec<u32>> {
        self.must_be(Kind::List, "a list of tokens")?;
        elements(self.text(), TOKENS_MAX)
            .map_err(|error| Fault::here(format!("expected a list of tokens: {}", reason(&error))))
    }

    /// That this value is not what it has to be.
    pub(crate) fn expected(self, what: &str) -> Fault {
        let got = match self.kind() {
            Kind::Null => "null",
            Kind::Boolean => "a boolean",
            Kind::Number => "a number",
            Kind::String => "a string",
            Kind::List => "a list",
            Kind::Object => "an object",
        };
        Fault::here(format!("expected {what}, got {got}"))
    }

    fn must_be(self, kind: Kind, what: &str) -> Read<()> {
        if self.kind() == kind { Ok(()) } else { Err(self.expected(what)) }
    }

    fn outside(self, what: &str, least: impl fmt::Display, most: impl fmt::Display) -> Fault {
        let got: String = self.text().chars().take(40).collect();
        Fault::here(format!("expected {what} {least} to {most}, got {got}"))
    }
}

/// serde_json's words without the position, which would count from the start of a field.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
