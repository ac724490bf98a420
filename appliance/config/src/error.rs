//! Where a text is wrong, and how.

use std::ops::Range;

/// Why a configuration text is refused. Lines and columns count from 1; a column is a character, not a byte.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ConfigError {
    /// Line of the text at fault.
    pub line: usize,
    /// Column of the text at fault.
    pub column: usize,
    /// What is wrong there.
    pub message: String,
}

impl ConfigError {
    /// An error about the bytes `span` of `text`.
    pub(crate) fn at(text: &str, span: Range<usize>, message: impl Into<String>) -> Self {
        let before = text.get(..span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Self {
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
            message: message.into(),
        }
    }

    /// What the TOML parser found wrong with `text`.
    pub(crate) fn syntax(text: &str, error: &toml::de::Error) -> Self {
        Self::at(text, error.span().unwrap_or(0..0), error.message())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_from_one() {
        let position = |text: &str, at: usize| {
            let error = ConfigError::at(text, at..at, "");
            (error.line, error.column)
        };
        assert_eq!(position("", 0), (1, 1));
        assert_eq!(position("ab\ncd", 1), (1, 2));
        assert_eq!(position("ab\ncd", 3), (2, 1));
        assert_eq!(position("é = 1", 3), (1, 3));
        assert_eq!(position("a", 99), (1, 2));
    }
}
