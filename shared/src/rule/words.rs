//! Words of a line, as a shell would cut it: blanks separate them, double quotes hold them together, and within quotes a
//! backslash takes the meaning from the character that follows.

use std::borrow::Cow;

/// What is wrong with a line, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {message}")]
pub struct RuleError {
    /// Byte offset of the offending word, from 1.
    pub column: usize,
    /// A sentence.
    pub message: String,
}

/// A word and where it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word<'a> {
    /// Byte offset, from 1.
    pub column: usize,
    /// Without its quotes.
    pub text: Cow<'a, str>,
}

/// Cuts a line into words.
#[derive(Debug, Clone)]
pub struct Words<'a> {
    line: &'a str,
    at: usize,
}

impl<'a> Words<'a> {
    /// Those of `line`.
    pub fn new(line: &'a str) -> Words<'a> {
        Words { line, at: 0 }
    }

    /// The column after the last word.
    pub fn end(&self) -> usize {
        self.line.len() + 1
    }

    fn cut(&mut self) -> Result<Option<Word<'a>>, RuleError> {
        let rest = &self.line[self.at..];
        let start = self.at + (rest.len() - rest.trim_start().len());
        let rest = &self.line[start..];
        let column = start + 1;
        let plain = rest.find(|c: char| c.is_whitespace() || c == '"').unwrap_or(rest.len());
        if !rest[plain..].starts_with('"') {
            self.at = start + plain;
            return Ok((plain > 0).then(|| Word { column, text: Cow::Borrowed(&rest[..plain]) }));
        }
        let mut text = String::new();
        let (mut quoted, mut escaped) = (false, false);
        for (offset, c) in rest.char_indices() {
            match c {
                _ if escaped => {
                    escaped = false;
                    text.push(c);
                }
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                c if c.is_whitespace() && !quoted => {
                    self.at = start + offset;
                    return Ok(Some(Word { column, text: Cow::Owned(text) }));
                }
                c => text.push(c),
            }
        }
        self.at = self.line.len();
        if quoted {
            return Err(RuleError { column, message: "a quote is not closed".into() });
        }
        Ok(Some(Word { column, text: Cow::Owned(text) }))
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = Result<Word<'a>, RuleError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.cut().transpose()
    }
}

/// The word as [`Words`], and a shell, reads it back: in quotes if it must be.
pub fn quoted(text: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-^".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return Cow::Borrowed(text);
    }
    let mut word = String::with_capacity(text.len() + 2);
    word.push('"');
    for c in text.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            word.push('\\');
        }
        word.push(c);
    }
    word.push('"');
    Cow::Owned(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(line: &str) -> Vec<(usize, String)> {
        Words::new(line).map(|word| word.map(|word| (word.column, word.text.into_owned())).unwrap()).collect()
    }

    #[test]
    fn words_and_their_columns() {
        assert_eq!(words("  -A  -c\tX "), [(3, "-A".into()), (7, "-c".into()), (10, "X".into())]);
        assert_eq!(
            words(r#"a "b c" "d\"e\\" f"g h"i"#),
            [(1, "a".into()), (3, "b c".into()), (9, r#"d"e\"#.into()), (18, "fg hi".into())]
        );
        assert_eq!(words(""), []);
        assert_eq!(words(r#""""#), [(1, String::new())]);
        let error = Words::new(r#"a "b"#).nth(1).unwrap().unwrap_err();
        assert_eq!(error.column, 3);
    }

    proptest! {
        #[test]
        fn any_text_can_be_quoted(texts in prop::collection::vec("\\PC*", 1..4)) {
            let line = texts.iter().map(|text| quoted(text)).collect::<Vec<_>>().join(" ");
            let read: Vec<_> = words(&line).into_iter().map(|(_, text)| text).collect();
            prop_assert_eq!(read, texts);
        }
    }
}
