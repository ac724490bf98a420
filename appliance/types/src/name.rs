//! Names of functions and keys: `[a-z0-9][a-z0-9-]{0,62}`, safe as a file name, a host label and a metric label.

use serde::{Deserialize, Serialize};
use std::{borrow::Borrow, fmt, str::FromStr};

/// Longest name, in bytes: that of a DNS label.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is no name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a name: use 1 to 63 of a-z, 0-9 and `-`, and begin with a letter or digit")]
pub struct ParseNameError {
    text: String,
}

fn check(text: &str) -> Result<(), ParseNameError> {
    let bytes = text.as_bytes();
    let letter = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let well_formed = bytes.len() <= NAME_BYTES_MAX
        && bytes.first().is_some_and(letter)
        && bytes.iter().all(|b| letter(b) || *b == b'-');
    if well_formed { Ok(()) } else { Err(ParseNameError { text: text.chars().take(NAME_BYTES_MAX + 1).collect() }) }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = ParseNameError;
            fn from_str(text: &str) -> Result<Self, ParseNameError> {
                check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = ParseNameError;
            fn try_from(text: String) -> Result<Self, ParseNameError> {
                check(&text)?;
                Ok(Self(text))
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name a function is called by: the API's `model`.
    FunctionName
);
name!(
    /// The name an API key goes by in lists and bills; never the key itself.
    KeyName
);
name!(
    /// The name of a project: keys that share a budget.
    ProjectName
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        for good in ["a", "0", "assistant", "a-b", &"x".repeat(63)] {
            assert_eq!(good.parse::<FunctionName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "a_b", "a/b", "..", "é", &"x".repeat(64)] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad}");
            assert!(serde_json::from_value::<KeyName>(bad.into()).is_err(), "{bad}");
        }
    }
}
