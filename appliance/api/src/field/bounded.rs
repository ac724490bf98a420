//! Lists and objects of at most so many elements: what a short body may make of our memory is bounded before it is.

use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt, marker::PhantomData};

/// The elements of the list that `json` is.
pub(super) fn elements<'de, T: Deserialize<'de>>(json: &'de str, max: usize) -> serde_json::Result<Vec<T>> {
    Elements { max, of: PhantomData }.deserialize(&mut serde_json::Deserializer::from_str(json))
}

/// The keys and values of the object that `json` is, in their order.
pub(super) fn entries(json: &str, max: usize) -> serde_json::Result<Vec<(Cow<'_, str>, &RawValue)>> {
    Entries { max }.deserialize(&mut serde_json::Deserializer::from_str(json))
}

/// A string that is borrowed where it holds no escapes.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

struct Elements<T> {
    max: usize,
    of: PhantomData<T>,
}

impl<'de, T: Deserialize<'de>> DeserializeSeed<'de> for Elements<T> {
    type Value = Vec<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Vec<T>, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Elements<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Vec<T>, A::Error> {
        let mut elements = Vec::new();
        while let Some(element) = sequence.next_element()? {
            if elements.len() == self.max {
                return Err(A::Error::custom(format_args!("more than {} elements", self.max)));
            }
            elements.push(element);
        }
        Ok(elements)
    }
}

struct Entries {
    max: usize,
}

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
            if entries.len() == self.max {
                return Err(A::Error::custom(format_args!("more than {} keys", self.max)));
            }
            entries.push((key.0, value));
        }
        Ok(entries)
    }
}
