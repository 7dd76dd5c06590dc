//! Whole rulesets in files: text or JSON, told apart by the first character, with the place of everything in them.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use shared::document::{At, Contradiction, Document, DocumentError, Form};
use shared::rule::{Item, List};
use shared::{Match, Selector};

use crate::namespace;
use crate::trouble::Trouble;

/// A ruleset and where its parts stand.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Ruleset {
    pub(crate) document: Document,
    /// Line and column of each rule.
    places: Vec<(usize, usize)>,
    /// And of each policy.
    policy_places: Vec<(usize, usize)>,
    /// Some namespace is a file.
    has_files: bool,
}

impl Ruleset {
    /// Where the rule stands that has this index.
    pub(crate) fn place(&self, index: usize) -> Option<(usize, usize)> {
        self.places.get(index).copied()
    }

    /// Reads either form. Where it is wrong, every error is listed.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Ruleset, Vec<DocumentError>> {
        let wrong = |line, column| DocumentError { line, column, message: "this is no UTF-8".into() };
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) if bytes.trim_ascii_start().starts_with(b"{") => {
                let (line, column) = place_in(bytes, error.valid_up_to());
                return Err(vec![wrong(line, column)]);
            }
            Err(_) => {
                // The other lines may be wrong too.
                let (mut text, mut errors) = (String::new(), Vec::new());
                for (index, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
                    match std::str::from_utf8(line) {
                        Ok(line) => text.push_str(line),
                        Err(error) => errors.push(wrong(index + 1, error.valid_up_to() + 1)),
                    }
                    text.push('\n');
                }
                errors.extend(from_text(&text).err().unwrap_or_default());
                errors.sort_by_key(|error| (error.line, error.column));
                return Err(errors);
            }
        };
        let mut ruleset = if text.trim_start().starts_with('{') { from_json(text) } else { from_text(text) }?;
        let errors = ruleset.find_files(text);
        if errors.is_empty() { Ok(ruleset) } else { Err(errors) }
    }

    /// As it is sent: `bytes`, which it was read from, themselves if they are a text and no namespace in it is a file, which must
    /// mean the same to the daemon as here.
    pub(crate) fn form(self, bytes: Vec<u8>) -> Form {
        let is_text = !self.has_files && !bytes.trim_ascii_start().starts_with(b"{");
        let text = is_text.then(|| String::from_utf8(bytes).ok()).flatten();
        text.map_or_else(|| self.document.into(), Form::Text)
    }

    /// Has namespaces that are files mean the same to the daemon as here. Which of them cannot be found.
    fn find_files(&mut self, text: &str) -> Vec<DocumentError> {
        let (mut errors, mut has_files) = (Vec::new(), false);
        let mut find = |selector: &mut Selector, place: &(usize, usize)| {
            let Selector::File(path) = selector else { return };
            has_files = true;
            let named = path.display().to_string();
            match namespace::absolute(selector) {
                Ok(found) => *selector = found,
                Err(error) => {
                    let (line, column) = *place;
                    errors.push((DocumentError { line, column, message: error.to_string() }, named));
                }
            }
        };
        for (policy, place) in self.document.policies.iter_mut().zip(&self.policy_places) {
            find(&mut policy.namespace, place);
        }
        for (numbered, place) in self.document.rules.iter_mut().zip(&self.places) {
            find(&mut numbered.rule.namespace, place);
            for predicate in &mut numbered.rule.predicates {
                let Match::Netns(List(items)) = &mut predicate.on else { continue };
                for item in items {
                    if let Item::One(selector) = item {
                        find(selector, place);
                    }
                }
            }
        }
        self.has_files = has_files;
        let lines: Vec<&str> = if errors.is_empty() { Vec::new() } else { text.lines().collect() };
        errors
            .into_iter()
            .map(|(mut error, named)| {
                let at = lines.get(error.line - 1).and_then(|line| line.find(&named));
                error.column = at.map_or(error.column, |at| at + 1);
                error
            })
            .collect()
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
    let lines_of = |word: &str| {
        let is_meant = |line: &str| line.split_whitespace().next() == Some(word);
        text.lines().enumerate().filter(|(_, line)| is_meant(line)).map(|(index, _)| (index + 1, 1)).collect()
    };
    Ok(Ruleset { document, places: lines_of("-A"), policy_places: lines_of("-P"), has_files: false })
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
        errors.extend(document.contradictions().into_iter().map(|Contradiction { at, message, .. }| {
            let (line, column) = match at {
                At::Set(index) => set_places[index],
                At::Policy(index) => policy_places[index],
                At::Rule(index) => places[index],
            };
            DocumentError { line, column, message }
        }));
    }
    errors.sort_by_key(|error| (error.line, error.column));
    if errors.is_empty() { Ok(Ruleset { document, places, policy_places, has_files: false }) } else { Err(errors) }
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
    fn a_line_that_is_no_text_hides_no_other_error() {
        let errors = |bytes: &[u8]| {
            let errors = Ruleset::parse(bytes).unwrap_err();
            errors.iter().map(|error| (error.line, error.column)).collect::<Vec<_>>()
        };
        let rule = "-A -c OUTPUT -v DROP -n any";
        let text = [rule.as_bytes(), b" --dport 99999\n", rule.as_bytes(), b" --comment \xff\n", b"jump\n"].concat();
        assert_eq!(errors(&text), [(1, 37), (2, 39), (3, 1)]);
        let gone = "-A -c OUTPUT -v DROP -n /proc/4000000000/ns/net\n";
        let text = format!("{rule}\n{gone}-P INPUT DROP -n /no/such/file\n{gone}");
        let mut found = errors(text.as_bytes());
        found.sort_unstable();
        assert_eq!(found, [(2, 25), (3, 18), (4, 25)]);
    }

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
