//! Whole rulesets in files: text or JSON, told apart by the first character, with the place of everything in them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use shared::document::{At, Document, DocumentError, Form};
use shared::rule::{Item, List};
use shared::{Match, Selector};

use crate::namespace::{self, NamespaceError};
use crate::trouble::Trouble;

/// A ruleset and where its parts stand.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Ruleset {
    pub(crate) document: Document,
    /// Line and column of each rule.
    places: Vec<(usize, usize)>,
}

impl Ruleset {
    /// Where the rule stands that has this index.
    pub(crate) fn place(&self, index: usize) -> Option<(usize, usize)> {
        self.places.get(index).copied()
    }

    /// Reads either form. Where it is wrong, every error is listed.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Ruleset, Vec<DocumentError>> {
        let text = std::str::from_utf8(bytes).map_err(|error| {
            let (line, column) = place_in(bytes, error.valid_up_to());
            vec![DocumentError { line, column, message: "this is no UTF-8".into() }]
        })?;
        if text.trim_start().starts_with('{') { from_json(text) } else { from_text(text) }
    }

    /// As it is sent: `bytes` themselves if they are a text and no namespace in it is a file, which must mean the same to the
    /// daemon as here.
    pub(crate) fn form(self, bytes: Vec<u8>) -> Result<Form, NamespaceError> {
        let mut files = false;
        let Ruleset { document, .. } = self.absolute(&mut files)?;
        let is_text = !files && !bytes.trim_ascii_start().starts_with(b"{");
        let text = is_text.then(|| String::from_utf8(bytes).ok()).flatten();
        Ok(text.map_or_else(|| document.into(), Form::Text))
    }

    fn absolute(mut self, files: &mut bool) -> Result<Ruleset, NamespaceError> {
        let mut place = |selector: &mut Selector| {
            if let Selector::File(_) = selector {
                *files = true;
                *selector = namespace::absolute(selector)?;
            }
            Ok::<_, NamespaceError>(())
        };
        for policy in &mut self.document.policies {
            place(&mut policy.namespace)?;
        }
        for numbered in &mut self.document.rules {
            place(&mut numbered.rule.namespace)?;
            for predicate in &mut numbered.rule.predicates {
                let Match::Netns(List(items)) = &mut predicate.on else { continue };
                for item in items {
                    if let Item::One(selector) = item {
                        place(selector)?;
                    }
                }
            }
        }
        Ok(self)
    }
}

/// Reads a file, or the standard input for `-`.
pub(crate) fn read_file(path: &Path) -> Result<Vec<u8>, Trouble> {
    let read = || -> io::Result<Vec<u8>> {
        if path != Path::new("-") {
            return fs::read(path);
        }
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(|source| Trouble::Read { path: shown(path), source })
}

/// How a file is called in messages.
pub(crate) fn shown(path: &Path) -> PathBuf {
    if path == Path::new("-") { "standard input".into() } else { path.into() }
}

/// Line and column, both from 1, of a byte.
fn place_in(bytes: &[u8], at: usize) -> (usize, usize) {
    let before = &bytes[..at.min(bytes.len())];
    let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    (line, before.len() - start + 1)
}

fn from_text(text: &str) -> Result<Ruleset, Vec<DocumentError>> {
    let document = Document::parse(text)?;
    let is_rule = |line: &str| line.split_whitespace().next() == Some("-A");
    let places = text.lines().enumerate().filter(|(_, line)| is_rule(line)).map(|(index, _)| (index + 1, 1));
    Ok(Ruleset { document, places: places.collect() })
}

/// A document whose parts are not read yet, so that an error in one does not hide those in others.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unread<'a> {
    #[serde(default, borrow)]
    sets: Vec<&'a RawValue>,
    #[serde(default, borrow)]
    policies: Vec<&'a RawValue>,
    #[serde(default, borrow)]
    rules: Vec<&'a RawValue>,
}

fn from_json(text: &str) -> Result<Ruleset, Vec<DocumentError>> {
    let unread: Unread<'_> = serde_json::from_str(text).map_err(|error| {
        vec![DocumentError { line: error.line(), column: error.column().max(1), message: said(&error) }]
    })?;
    let mut errors = Vec::new();
    let (sets, set_places) = parts(text, &unread.sets, &mut errors);
    let (policies, policy_places) = parts(text, &unread.policies, &mut errors);
    let (rules, places) = parts(text, &unread.rules, &mut errors);
    let document = Document { sets, policies, rules };
    // Indices mean something only if all parts are there.
    if errors.is_empty() {
        errors.extend(document.contradictions().into_iter().map(|(part, message)| {
            let (line, column) = match part {
                At::Set(index) => set_places[index],
                At::Policy(index) => policy_places[index],
                At::Rule(index) => places[index],
            };
            DocumentError { line, column, message }
        }));
    }
    errors.sort_by_key(|error| (error.line, error.column));
    if errors.is_empty() { Ok(Ruleset { document, places }) } else { Err(errors) }
}

/// Reads each part, and tells where it stands.
fn parts<T: DeserializeOwned>(
    text: &str,
    raw: &[&RawValue],
    errors: &mut Vec<DocumentError>,
) -> (Vec<T>, Vec<(usize, usize)>) {
    let (mut read, mut places) = (Vec::new(), Vec::new());
    // Counting lines from the start for each of many parts would take long.
    let (mut at, mut line, mut start) = (0, 1, 0);
    for part in raw {
        // A raw value is a piece of the text it was read from.
        let offset = part.get().as_ptr() as usize - text.as_ptr() as usize;
        for (index, _) in text.as_bytes()[at..offset].iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            (line, start) = (line + 1, at + index + 1);
        }
        at = offset;
        let place = (line, offset - start + 1);
        places.push(place);
        match serde_json::from_str(part.get()) {
            Ok(value) => read.push(value),
            Err(error) => {
                let (line, column) = match error.line() {
                    0 => place,
                    1 => (place.0, place.1 + error.column().saturating_sub(1)),
                    more => (place.0 + more - 1, error.column().max(1)),
                };
                errors.push(DocumentError { line, column, message: said(&error) });
            }
        }
    }
    (read, places)
}

/// Without the place, which is told in another way.
fn said(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rfind(" at line ") {
        Some(end) => text[..end].into(),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\
# remark
set create lan addresses 10.0.0.0/8
-P OUTPUT DROP -n host

-A -c OUTPUT -n host -v ACCEPT -d @lan --id 7
-A -c OUTPUT -n any -v REJECT --dport 22
";

    #[test]
    fn both_forms_say_the_same() {
        let text = Ruleset::parse(TEXT.as_bytes()).unwrap();
        assert_eq!((text.place(0), text.place(1), text.place(2)), (Some((5, 1)), Some((6, 1)), None));
        let json = serde_json::to_string_pretty(&text.document).unwrap();
        let read = Ruleset::parse(format!("\n {json}").as_bytes()).unwrap();
        assert_eq!(read.document, text.document);
        let (line, _) = read.place(1).unwrap();
        let lines: Vec<_> = json.lines().collect();
        assert_eq!(lines[line - 2].trim(), "{", "{json}");
        assert!(lines[line - 1..].iter().any(|line| line.contains("REJECT")));
        assert_eq!(Ruleset::parse(b"").unwrap(), Ruleset::default());
    }

    #[test]
    fn every_error_of_json_has_its_place() {
        let errors = |text: &str| {
            let errors = Ruleset::parse(text.as_bytes()).unwrap_err();
            errors.into_iter().map(|error| (error.line, error.column, error.message)).collect::<Vec<_>>()
        };
        let text = "{\"rules\":[\n  {\"rule\":{\"chain\":\"SIDE\"}},\n  {\"id\":\"x\"},\n  {\"rule\":{\"chain\":\"OUTPUT\",\
                    \"namespace\":\"any\",\"verdict\":\"DROP\",\"predicates\":[{\"match\":\"protocol\",\"value\":\"quic\"}]}}]}";
        let found = errors(text);
        assert_eq!(found.iter().map(|(line, ..)| *line).collect::<Vec<_>>(), [2, 3, 4], "{found:?}");
        assert!(found[0].2.contains("SIDE") && found[2].2.contains("quic"), "{found:?}");
        assert_eq!(errors("{\"rules\":[,]}")[0].0, 1);
        let rule = "{\"id\":0,\"rule\":{\"chain\":\"OUTPUT\",\"namespace\":\"any\",\"verdict\":\"DROP\"}}";
        let found = errors(&format!("{{\"rules\":[\n{rule}]}}"));
        assert_eq!(found, [(2, 1, "no rule has the id 0".into())]);
    }

    #[test]
    fn bytes_that_are_no_text_have_their_place() {
        let errors = Ruleset::parse(b"# x\n# \xff\n").unwrap_err();
        assert_eq!((errors[0].line, errors[0].column), (2, 3));
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,60}", bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let _ = Ruleset::parse(text.as_bytes());
            let _ = Ruleset::parse(format!("{{\"rules\":[{text}]}}").as_bytes());
            let _ = Ruleset::parse(&bytes);
        }
    }
}
