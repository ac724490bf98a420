//! One TOML table, read key by key, so that every error knows its place.
//!
//! The keys that a table may hold are checked before any is read: a misspelt key is reported as such rather than as a
//! missing one.

use crate::{
    ConfigError,
    unit::{duration_ms, duration_text, size_bytes, size_text},
};
use std::{
    fmt::Display,
    ops::{Range, RangeInclusive},
    str::FromStr,
};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Longest distance, in edits, at which a known key is suggested for an unknown one.
const SUGGESTION_EDITS_MAX: usize = 2;

/// The keys of each table; the first, nameless one is the top.
pub(crate) type Schema = &'static [(&'static str, &'static [&'static str])];

/// What turns a value into a `T`, or says why not.
pub(crate) type Reader<'r, T> = &'r dyn Fn(&DeValue<'_>) -> Result<T, String>;

/// A table of `text` that holds only known keys; an absent one is empty.
pub(crate) struct Section<'t> {
    text: &'t str,
    table: Option<&'t DeTable<'t>>,
    schema: Schema,
    /// Where it begins, for what is missing in it.
    span: Range<usize>,
}

impl<'t> Section<'t> {
    /// The top of a document.
    pub(crate) fn top(text: &'t str, table: &'t DeTable<'t>, schema: Schema) -> Result<Self, ConfigError> {
        Self { text, table: Some(table), schema, span: 0..0 }.checked("")
    }

    /// The table `[name]`.
    pub(crate) fn section(&self, name: &'static str) -> Result<Self, ConfigError> {
        let table = match self.find(name) {
            None => None,
            Some((_, value)) => match value.get_ref() {
                DeValue::Table(table) => Some(table),
                other => return Err(self.wrong(value, expected(&format!("a table `[{name}]`"), other))),
            },
        };
        Self { text: self.text, table, schema: self.schema, span: 0..0 }.checked(name)
    }

    /// The tables `[[key]]`, at most `most`; `name` is what the schema calls them.
    pub(crate) fn sections(&self, key: &'static str, name: &str, most: usize) -> Result<Vec<Self>, ConfigError> {
        let Some((_, list)) = self.find(key) else { return Ok(Vec::new()) };
        let wrong = |value: &Spanned<DeValue<'_>>| {
            self.wrong(value, expected(&format!("tables `[[{name}]]`"), value.get_ref()))
        };
        let items = list.get_ref().as_array().ok_or_else(|| wrong(list))?;
        if let Some(item) = items.get(most) {
            return Err(self.wrong(item, format!("`[[{name}]]`: {} of them; the most is {most}", items.len())));
        }
        let one = |item: &'t Spanned<DeValue<'t>>| {
            let table = item.get_ref().as_table().ok_or_else(|| wrong(item))?;
            Self { text: self.text, table: Some(table), schema: self.schema, span: item.span() }.checked(name)
        };
        items.iter().map(one).collect()
    }

    /// What `key` holds, if it is there.
    pub(crate) fn get<T>(&self, key: &'static str, reader: Reader<'_, T>) -> Result<Option<T>, ConfigError> {
        let Some((_, value)) = self.find(key) else { return Ok(None) };
        reader(value.get_ref()).map(Some).map_err(|message| self.wrong(value, format!("`{key}`: {message}")))
    }

    /// What `key` holds; an error if it is not there.
    pub(crate) fn require<T>(&self, key: &'static str, reader: Reader<'_, T>) -> Result<T, ConfigError> {
        let missing = || ConfigError::at(self.text, self.span.clone(), format!("missing key `{key}`"));
        self.get(key, reader)?.ok_or_else(missing)
    }

    /// An error that points at the value of `key`.
    pub(crate) fn error(&self, key: &'static str, message: impl Into<String>) -> ConfigError {
        let span = self.find(key).map_or(0..0, |(_, value)| value.span());
        ConfigError::at(self.text, span, message)
    }

    fn find(&self, key: &str) -> Option<(&'t Spanned<std::borrow::Cow<'t, str>>, &'t Spanned<DeValue<'t>>)> {
        self.table?.iter().find(|(name, _)| name.get_ref() == key)
    }

    fn wrong(&self, value: &Spanned<DeValue<'_>>, message: String) -> ConfigError {
        ConfigError::at(self.text, value.span(), message)
    }

    fn checked(self, name: &str) -> Result<Self, ConfigError> {
        let known = self.schema.iter().find(|(section, _)| *section == name).map_or(&[][..], |(_, keys)| keys);
        let keys = self.table.into_iter().flat_map(DeTable::keys);
        let unknown = keys.filter(|key| !known.contains(&&**key.get_ref())).min_by_key(|key| key.span().start);
        match unknown {
            None => Ok(self),
            Some(key) => {
                let hint = suggest(self.schema, known, key.get_ref());
                let message = format!("unknown key `{}`{hint}", key.get_ref().escape_debug());
                Err(ConfigError::at(self.text, key.span(), message))
            }
        }
    }
}

/// Text as it is.
pub(crate) fn text(value: &DeValue<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| expected("a string", value))
}

/// `true` or `false`.
pub(crate) fn truth(value: &DeValue<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| "expected true or false".to_owned())
}

/// Text that a `T` is read from.
pub(crate) fn parsed<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<T, String> {
    text(value)?.parse().map_err(|error: T::Err| error.to_string())
}

/// A list of texts, each of which a `T` is read from.
pub(crate) fn list<T: FromStr<Err: Display>>(value: &DeValue<'_>) -> Result<Vec<T>, String> {
    let items = value.as_array().ok_or_else(|| expected("a list", value))?;
    items.iter().map(|item| parsed(item.get_ref())).collect()
}

/// A whole number within `range`.
pub(crate) fn number(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Result<u32, String> {
    move |value| {
        let number = integer(value).ok_or_else(|| expected("a whole number", value))?;
        let within = u32::try_from(number).ok().filter(|number| range.contains(number));
        within.ok_or_else(|| outside(number, range.start(), range.end()))
    }
}

/// A size within `range`, in bytes: text with a unit, or a whole number of bytes.
pub(crate) fn size(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<u64, String> {
    move |value| {
        let bytes = match (value.as_str(), integer(value)) {
            (Some(text), _) => size_bytes(text)?,
            (_, Some(bytes)) => u64::try_from(bytes).map_err(|_| outside(bytes, range.start(), range.end()))?,
            _ => return Err(expected("a size such as \"512MiB\"", value)),
        };
        let (least, most) = (size_text(*range.start()), size_text(*range.end()));
        if range.contains(&bytes) { Ok(bytes) } else { Err(outside(size_text(bytes), least, most)) }
    }
}

/// A duration within `range`, in milliseconds.
pub(crate) fn duration(range: RangeInclusive<u64>) -> impl Fn(&DeValue<'_>) -> Result<u64, String> {
    move |value| {
        let ms = duration_ms(value.as_str().ok_or_else(|| expected("a duration such as \"30s\"", value))?)?;
        let (least, most) = (duration_text(*range.start()), duration_text(*range.end()));
        if range.contains(&ms) { Ok(ms) } else { Err(outside(duration_text(ms), least, most)) }
    }
}

fn integer(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn outside(value: impl Display, least: impl Display, most: impl Display) -> String {
    format!("{value} is outside {least} to {most}")
}

fn expected(what: &str, got: &DeValue<'_>) -> String {
    let got = match got {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    format!("expected {what}, got {got}")
}

fn suggest(schema: Schema, known: &[&str], key: &str) -> String {
    let home = schema.iter().find(|(_, keys)| keys.contains(&key));
    let near = known.iter().map(|name| (strsim::osa_distance(name, key), name)).min();
    match (home, near) {
        (Some((section, _)), _) if !section.is_empty() => format!("; it belongs in `[{section}]`"),
        (Some(_), _) => "; it belongs at the top, before the first `[section]`".to_owned(),
        (_, Some((edits, name))) if edits <= SUGGESTION_EDITS_MAX => format!("; did you mean `{name}`?"),
        _ if known.is_empty() => String::new(),
        _ => format!("; known are `{}`", known.join("`, `")),
    }
}
