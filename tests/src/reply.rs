//! A whole reply, with the few questions that tests ask of it.

use serde_json::Value;
use ureq::http::HeaderMap;

/// Status, headers and body of a reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
}

impl Reply {
    /// This reply, if it has `status`; fails the test otherwise.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "the body is {}", String::from_utf8_lossy(&self.body));
        self
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: status {}, body {text}", self.status))
    }

    /// The text of the first choice of a chat or a completion that was answered.
    #[track_caller]
    pub fn text(&self) -> String {
        let choice = self.clone().expect(200).json()["choices"][0].clone();
        let text = choice["message"]["content"].as_str().or_else(|| choice["text"].as_str());
        text.unwrap_or_else(|| panic!("no text in {choice}")).to_owned()
    }

    /// A header, which must be there.
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.headers));
        value.to_str().expect("headers are text")
    }

    /// The error in OpenAI's envelope, checked for its shape; fails the test unless the reply has `status`.
    #[track_caller]
    pub fn error(&self, status: u16) -> Value {
        let error = self.clone().expect(status).json()["error"].clone();
        let fields = error.as_object().unwrap_or_else(|| panic!("no envelope: {error}"));
        assert!(["message", "type", "param", "code"].iter().all(|field| fields.contains_key(*field)), "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["type"].is_string(), "{error}");
        error
    }
}
