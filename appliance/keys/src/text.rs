//! The text of a key.
//!
//! ```text
//!  ember-  ┃ base64url of:  0 ─────────── 32 ─────── 36
//!          ┃                │ random bits │ checksum │      48 characters, and no bits to spare: one text a key
//! ```
//!
//! The checksum (the first bytes of the BLAKE3 hash of the random bits) tells a mistyped key from a revoked one before
//! anything is looked up, and lets secret scanners be sure of a find. It protects nothing.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{fmt, str::FromStr};

const PREFIX: &str = "ember-";
const SECRET_BYTES: usize = 32;
const CHECKSUM_BYTES: usize = 4;
const ENCODED_BYTES: usize = (SECRET_BYTES + CHECKSUM_BYTES) / 3 * 4;

/// A key as its holder has it. Shown by `Display`, hidden from `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyText {
    text: String,
    secret: [u8; SECRET_BYTES],
}

/// Why a text is no key. It never holds the text: that might be nearly a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseKeyError {
    /// It has another form.
    #[error("this is not an Ember key: a key is `ember-` and 48 letters, digits, `-` or `_`")]
    Form,
    /// It has the form, and a mistake in it.
    #[error("this is not an Ember key: its checksum does not fit, so a character is mistyped or missing")]
    Checksum,
}

impl KeyText {
    /// A new key from the kernel's random bytes.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut secret = [0; SECRET_BYTES];
        getrandom::fill(&mut secret)?;
        Ok(Self::from_secret(secret))
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// What the text stands for.
    pub(crate) fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret
    }

    fn from_secret(secret: [u8; SECRET_BYTES]) -> Self {
        let mut bytes = secret.to_vec();
        bytes.extend_from_slice(&checksum(&secret));
        Self { text: format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)), secret }
    }
}

/// The secret in a key's text; no memory is allocated.
pub(crate) fn secret_of(text: &str) -> Result<[u8; SECRET_BYTES], ParseKeyError> {
    let encoded = text.strip_prefix(PREFIX).filter(|encoded| encoded.len() == ENCODED_BYTES);
    let mut bytes = [0; SECRET_BYTES + CHECKSUM_BYTES];
    URL_SAFE_NO_PAD.decode_slice(encoded.ok_or(ParseKeyError::Form)?, &mut bytes).map_err(|_| ParseKeyError::Form)?;
    let (secret, check) = bytes.split_first_chunk().expect("there are 36 bytes");
    if checksum(secret) == *check { Ok(*secret) } else { Err(ParseKeyError::Checksum) }
}

fn checksum(secret: &[u8; SECRET_BYTES]) -> [u8; CHECKSUM_BYTES] {
    *blake3::hash(secret).as_bytes().first_chunk().expect("a hash has 32 bytes")
}

impl FromStr for KeyText {
    type Err = ParseKeyError;
    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        secret_of(text).map(Self::from_secret)
    }
}

impl fmt::Display for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_is_hidden_from_debug() {
        let key = KeyText::random().unwrap();
        assert_eq!(key.as_str().len(), 54);
        assert_eq!(format!("{key:?}"), "KeyText(hidden)");
        assert_ne!(key, KeyText::random().unwrap());
    }

    proptest! {
        #[test]
        fn keys_read_what_they_write(secret: [u8; SECRET_BYTES]) {
            let key = KeyText::from_secret(secret);
            prop_assert_eq!(key.as_str().parse(), Ok(key.clone()));
            prop_assert_eq!(secret_of(&key.to_string()), Ok(secret));
        }

        #[test]
        fn a_mistyped_key_is_told_as_such(secret: [u8; SECRET_BYTES], at in 6usize..54, typed in "[A-Za-z0-9_-]") {
            let mut text = KeyText::from_secret(secret).to_string();
            let right = text[at..=at].to_owned();
            text.replace_range(at..=at, &typed);
            let expected = if typed == right { Ok(secret) } else { Err(ParseKeyError::Checksum) };
            prop_assert_eq!(secret_of(&text), expected);
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            prop_assert_eq!(secret_of(&text), Err(ParseKeyError::Form));
        }
    }
}
