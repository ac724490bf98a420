//! `GET /v1/models` and `/v1/models/{id}`: functions in OpenAI's shape.

use crate::reply::write_json;
use serde::Serialize;

/// A function as OpenAI's clients list it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model<'a> {
    /// The function's name.
    id: &'a str,
    object: &'static str,
    /// When it was deployed, seconds since the Unix epoch.
    created: u64,
    owned_by: &'static str,
}

impl<'a> Model<'a> {
    /// The function `id`, deployed at `created_unix_s`.
    pub fn new(id: &'a str, created_unix_s: u64) -> Self {
        Self { id, object: "model", created: created_unix_s, owned_by: "ember" }
    }

    /// The reply that describes it.
    pub fn reply(&self) -> Vec<u8> {
        let mut body = Vec::new();
        write_json(self, &mut body);
        body
    }
}

/// The reply that lists `models`.
pub fn list_reply(models: &[Model<'_>]) -> Vec<u8> {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: &'a [Model<'a>],
    }
    let mut body = Vec::new();
    write_json(&List { object: "list", data: models }, &mut body);
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_openais() {
        let model = Model::new("a", 7);
        let one = r#"{"id":"a","object":"model","created":7,"owned_by":"ember"}"#;
        assert_eq!(String::from_utf8(model.reply()).unwrap(), one);
        let list = String::from_utf8(list_reply(&[model])).unwrap();
        assert_eq!(list, format!(r#"{{"object":"list","data":[{one}]}}"#));
        assert_eq!(list_reply(&[]), br#"{"object":"list","data":[]}"#);
    }
}
