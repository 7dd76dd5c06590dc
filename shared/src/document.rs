//! A whole ruleset as a text or as JSON: what `ctl-fw save` writes and `ctl-fw restore` reads.
//!
//! Each line of the text is what stands behind `ctl-fw` on a command line that makes its part: a set, a policy, a rule.
//! Blank lines mean nothing, nor does what follows a `#` at the beginning of a line. `--id N` of a rule is its stable id.

use std::collections::HashMap;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::rule::{Draft, RuleError, Words, quoted};
use crate::set::{Elements, Set, SetKind, SetName};
use crate::{Chain, Rule, Selector, Verdict};

/// A chain's policy in a namespace.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// The chain.
    pub chain: Chain,
    /// The namespace.
    pub namespace: Selector,
    /// What happens where no rule fires: ACCEPT or DROP.
    pub verdict: Verdict,
}

/// A rule, and its id if it has one already.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumberedRule {
    /// Stable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The rule.
    pub rule: Rule,
}

/// A ruleset: everything that packets are judged by. In each chain of each namespace the rules stand in the order given.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Named sets.
    #[serde(default)]
    pub sets: Vec<Set>,
    /// Policies.
    #[serde(default)]
    pub policies: Vec<Policy>,
    /// Rules.
    #[serde(default)]
    pub rules: Vec<NumberedRule>,
}

/// A ruleset as it is sent: as a text, which is shorter and need not be written again, or as an object.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(untagged)]
pub enum Form {
    /// What [`Document::parse`] reads.
    Text(String),
    /// Its parts.
    Parts(Document),
}

impl Form {
    /// The ruleset.
    ///
    /// # Errors
    /// All that is wrong with a text, by line. What parts contradict each other is not looked for.
    pub fn read(self) -> Result<Document, Vec<DocumentError>> {
        match self {
            Form::Text(text) => Document::parse(&text),
            Form::Parts(document) => Ok(document),
        }
    }
}

impl From<Document> for Form {
    fn from(document: Document) -> Form {
        Form::Parts(document)
    }
}

/// Written out, because serde would hold back all parts before it reads them.
impl<'de> Deserialize<'de> for Form {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Form, D::Error> {
        struct EitherForm;

        impl<'de> Visitor<'de> for EitherForm {
            type Value = Form;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a ruleset: its text, or {\"sets\": ..., \"policies\": ..., \"rules\": ...}")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Form, E> {
                Ok(Form::Text(text.into()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Form, A::Error> {
                Document::deserialize(MapAccessDeserializer::new(map)).map(Form::Parts)
            }
        }

        deserializer.deserialize_any(EitherForm)
    }
}

/// What is wrong with a document, and where.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize, Deserialize)]
#[error("line {line}, column {column}: {message}")]
pub struct DocumentError {
    /// From 1.
    pub line: usize,
    /// Byte offset in the line, from 1.
    pub column: usize,
    /// A sentence.
    pub message: String,
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-P {} {} -n {}", self.chain, self.verdict, quoted(&self.namespace.to_string()))
    }
}

impl fmt::Display for NumberedRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.rule.fmt(f)?;
        match self.id {
            Some(id) => write!(f, " --id {id}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for set in &self.sets {
            writeln!(f, "{set}")?;
        }
        for policy in &self.policies {
            writeln!(f, "{policy}")?;
        }
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        Ok(())
    }
}

/// The highest id of a rule: JSON readers of any kind can hold it.
pub const MAX_ID: u64 = (1 << 53) - 1;

/// Texts of so many bytes are worth a thread for each part of them.
const LONG: usize = 1 << 20;

impl Document {
    /// Reads the text form. Where it is wrong, every error is listed.
    ///
    /// # Errors
    /// All that is wrong, by line.
    pub fn parse(text: &str) -> Result<Document, Vec<DocumentError>> {
        let Read { mut errors, document, lines } = Read::parts(text);
        let contradictions = document.contradictions();
        if !contradictions.is_empty() {
            let texts: Vec<&str> = text.lines().collect();
            errors.extend(contradictions.into_iter().map(|Contradiction { at, about, message }| {
                let line = match at {
                    At::Set(index) => lines.sets[index],
                    At::Policy(index) => lines.policies[index],
                    At::Rule(index) => lines.rules[index],
                };
                let column = texts.get(line - 1).and_then(|text| text.find(&about)).map_or(1, |at| at + 1);
                DocumentError { line, column, message }
            }));
        }
        errors.sort_by_key(|error| (error.line, error.column));
        if errors.is_empty() { Ok(document) } else { Err(errors) }
    }

    /// What of it cannot be true together: a name, an id or a policy given twice, a set that is not there or is of another
    /// kind. A document of JSON is asked as well as one of text.
    pub fn contradictions(&self) -> Vec<Contradiction> {
        let mut found = Vec::new();
        let mut kinds: HashMap<&SetName, SetKind> = HashMap::new();
        for (index, set) in self.sets.iter().enumerate() {
            if kinds.insert(&set.name, set.elements.kind()).is_some() {
                let (about, message) = (set.name.to_string(), format!("the set {} is there twice", set.name));
                found.push(Contradiction { at: At::Set(index), about, message });
            }
        }
        let mut policies = HashMap::new();
        for (index, policy) in self.policies.iter().enumerate() {
            if policies.insert((policy.chain, &policy.namespace), ()).is_some() {
                let Policy { chain, namespace, .. } = policy;
                let message = format!("the policy of {chain} in {namespace} is there twice");
                found.push(Contradiction { at: At::Policy(index), about: chain.to_string(), message });
            }
            if policy.verdict == Verdict::Reject {
                let (about, message) = (policy.verdict.to_string(), "a policy is ACCEPT or DROP".into());
                found.push(Contradiction { at: At::Policy(index), about, message });
            }
        }
        let mut ids = HashMap::new();
        for (index, NumberedRule { id, rule }) in self.rules.iter().enumerate() {
            let about = |about: String, message: String| Contradiction { at: At::Rule(index), about, message };
            match id {
                Some(0) => found.push(about("--id".into(), "no rule has the id 0".into())),
                Some(id) if *id > MAX_ID => {
                    found.push(about(format!("--id {id}"), format!("the highest id of a rule is {MAX_ID}")));
                }
                Some(id) if ids.insert(*id, ()).is_some() => {
                    found.push(about(format!("--id {id}"), format!("the id {id} is there twice")));
                }
                _ => {}
            }
            for predicate in &rule.predicates {
                for (name, wanted) in predicate.on.sets() {
                    let option = predicate.on.option();
                    match kinds.get(name) {
                        None => {
                            found.push(about(format!("@{name}"), format!("{option} @{name}: there is no such set")))
                        }
                        Some(kind) if *kind != wanted => found.push(about(
                            format!("@{name}"),
                            format!("{option} @{name}: a set of {wanted} is wanted, this is one of {kind}"),
                        )),
                        Some(_) => {}
                    }
                }
            }
        }
        found
    }
}

/// Something in a document that cannot be true beside the rest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Contradiction {
    /// The part it is in.
    pub at: At,
    /// The words of the text form that it is about.
    pub about: String,
    /// A sentence.
    pub message: String,
}

/// Which part of a document is meant: its index in its list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum At {
    /// Of the sets.
    Set(usize),
    /// Of the policies.
    Policy(usize),
    /// Of the rules.
    Rule(usize),
}

/// Which line each part of a document stands on.
#[derive(Default)]
struct Lines {
    sets: Vec<usize>,
    policies: Vec<usize>,
    rules: Vec<usize>,
}

/// What was read so far.
#[derive(Default)]
struct Read {
    document: Document,
    lines: Lines,
    errors: Vec<DocumentError>,
}

impl Read {
    /// Reads a long text by as many threads as may run at once.
    fn parts(text: &str) -> Read {
        let threads = if text.len() < LONG { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
        std::thread::scope(|scope| {
            let (mut first, mut rest) = (1, text);
            let mut reading = Vec::new();
            for left in (2..=threads).rev() {
                // Not in the middle of a character, which no line end is.
                let bytes = rest.as_bytes();
                let middle = rest.len() / left;
                let end =
                    bytes[middle..].iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| middle + at + 1);
                let (part, others) = rest.split_at(end);
                reading.push(scope.spawn(move || Read::lines(first, part)));
                first += part.bytes().filter(|byte| *byte == b'\n').count();
                rest = others;
            }
            let last = Read::lines(first, rest);
            let joined = reading.into_iter().map(|thread| match thread.join() {
                Ok(read) => read,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            joined.chain([last]).reduce(Read::and).unwrap_or_default()
        })
    }

    /// Reads lines of which the first has the number `first`.
    fn lines(first: usize, text: &str) -> Read {
        let mut read = Read::default();
        for (number, line) in (first..).zip(text.lines()) {
            if line.trim_start().is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(wrong) = read.line(number, line) {
                let at = |RuleError { column, message }| DocumentError { line: number, column, message };
                read.errors.extend(wrong.into_iter().map(at));
            }
        }
        read
    }

    fn line(&mut self, number: usize, line: &str) -> Result<(), Vec<RuleError>> {
        let mut words = Words::new(line);
        let first = words.next().transpose().map_err(|error| vec![error])?;
        match first.as_ref().map(|word| word.text.as_ref()) {
            Some("-A") => {
                self.document.rules.push(read_rule(words)?);
                self.lines.rules.push(number);
            }
            Some("-P") => {
                self.document.policies.push(read_policy(words).map_err(|error| vec![error])?);
                self.lines.policies.push(number);
            }
            Some("set") => {
                self.document.sets.push(read_set(words).map_err(|error| vec![error])?);
                self.lines.sets.push(number);
            }
            _ => {
                let column = first.map_or(1, |word| word.column);
                let message = "a line begins with -A, -P, set, or # for a remark".into();
                return Err(vec![RuleError { column, message }]);
            }
        }
        Ok(())
    }

    fn and(mut self, mut later: Read) -> Read {
        self.document.sets.append(&mut later.document.sets);
        self.document.policies.append(&mut later.document.policies);
        self.document.rules.append(&mut later.document.rules);
        self.lines.sets.append(&mut later.lines.sets);
        self.lines.policies.append(&mut later.lines.policies);
        self.lines.rules.append(&mut later.lines.rules);
        self.errors.append(&mut later.errors);
        self
    }
}

/// Goes on to the next word that looks like an option. False if there is none, or a quote is not closed.
fn words_left(words: &mut Words<'_>) -> bool {
    loop {
        let mut ahead = words.clone();
        match ahead.next() {
            Some(Ok(word)) if word.text == "!" || word.text.starts_with('-') => return true,
            Some(Ok(_)) => *words = ahead,
            Some(Err(_)) | None => return false,
        }
    }
}

/// Reads on after a wrong value, so that the next one is found as well; after an option that is none, from the next word that
/// looks like one.
fn read_rule(mut words: Words<'_>) -> Result<NumberedRule, Vec<RuleError>> {
    let (mut draft, mut id, mut errors) = (Draft::default(), None, Vec::new());
    while let Some(word) = words.next() {
        let read = word.and_then(|word| {
            let read = if word.text == "--id" { read_id(&mut words, &mut id) } else { draft.take(&word, &mut words) };
            read.map_err(|error| (error.column > word.column, error)).or_else(|(goes_on, error)| match goes_on {
                true => {
                    errors.push(error);
                    Ok(())
                }
                false => Err(error),
            })
        });
        if let Err(error) = read {
            let is_option = words_left(&mut words);
            errors.push(error);
            if !is_option {
                return Err(errors);
            }
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    draft.finish(words.end()).map(|rule| NumberedRule { id, rule }).map_err(|error| vec![error])
}

fn read_id(words: &mut Words<'_>, id: &mut Option<u64>) -> Result<(), RuleError> {
    let (column, value) = value(words, "--id")?;
    let number = value.parse().map_err(|_| RuleError { column, message: format!("{value:?} is no id: a number") })?;
    match id.replace(number) {
        None => Ok(()),
        Some(_) => Err(RuleError { column, message: "given twice".into() }),
    }
}

fn read_policy(mut words: Words<'_>) -> Result<Policy, RuleError> {
    let chain = parsed(&mut words, "the chain")?;
    let verdict = parsed(&mut words, "the verdict")?;
    let option = words.next().transpose()?;
    if option.as_ref().is_none_or(|word| word.text != "-n") {
        let column = option.map_or(words.end(), |word| word.column);
        return Err(RuleError { column, message: "the namespace (-n) is missing".into() });
    }
    let namespace = parsed(&mut words, "-n")?;
    nothing_more(words)?;
    Ok(Policy { chain, namespace, verdict })
}

fn read_set(mut words: Words<'_>) -> Result<Set, RuleError> {
    let (column, verb) = value(&mut words, "set")?;
    if verb != "create" {
        return Err(RuleError { column, message: format!("{verb:?} is not create") });
    }
    let name = parsed(&mut words, "the name")?;
    let kind = parsed(&mut words, "the kind")?;
    let elements = match words.next().transpose()? {
        None => Elements::none(kind),
        Some(word) => Elements::parse(kind, word.text.split(','))
            .map_err(|error| RuleError { column: word.column, message: error.to_string() })?,
    };
    nothing_more(words)?;
    Ok(Set { name, elements })
}

fn value(words: &mut Words<'_>, what: &str) -> Result<(usize, String), RuleError> {
    match words.next().transpose()? {
        Some(word) => Ok((word.column, word.text.into_owned())),
        None => Err(RuleError { column: words.end(), message: format!("{what} wants a value") }),
    }
}

fn parsed<T: std::str::FromStr<Err: fmt::Display>>(words: &mut Words<'_>, what: &str) -> Result<T, RuleError> {
    let word = words.next().transpose()?;
    let word = word.ok_or_else(|| RuleError { column: words.end(), message: format!("{what} is missing") })?;
    word.text.parse().map_err(|error: T::Err| RuleError { column: word.column, message: error.to_string() })
}

fn nothing_more(mut words: Words<'_>) -> Result<(), RuleError> {
    match words.next().transpose()? {
        None => Ok(()),
        Some(word) => {
            Err(RuleError { column: word.column, message: format!("nothing is expected here: {:?}", word.text) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
set create lan addresses 10.0.0.0/8,::1/128
set create web ports 80,443
-P OUTPUT DROP -n host
-A -c OUTPUT -n host -v ACCEPT -d @lan --dport @web --id 7
-A -c OUTPUT -n any -v REJECT ! --dport 22 --comment \"not \\\"this\\\"\"
";

    #[test]
    fn text_and_json_round_trip() {
        let document = Document::parse(TEXT).unwrap();
        assert_eq!(document.to_string(), TEXT);
        assert_eq!(document.rules[0].id, Some(7));
        let json = serde_json::to_string(&document).unwrap();
        assert_eq!(serde_json::from_str::<Document>(&json).unwrap(), document);
        for form in [Form::Text(TEXT.into()), document.clone().into()] {
            let json = serde_json::to_string(&form).unwrap();
            assert_eq!(serde_json::from_str::<Form>(&json).unwrap(), form);
            assert_eq!(form.read().unwrap(), document);
        }
        let spaced = format!("# remark\n\n   \n{}", TEXT.replace(" -v", "   -v"));
        assert_eq!(Document::parse(&spaced).unwrap(), document);
        assert_eq!(Document::parse("").unwrap(), Document::default());
    }

    #[test]
    fn every_error_is_listed_with_its_place() {
        let text = "\
-A -c OUTPUT -n any -v DROP --dport 99999
-A -c OUTPUT -n any -v DROP --id 1
-A -c OUTPUT -n any -v DROP --id 1
-A -c OUTPUT -n any -v DROP -s @nobody
set create web ports 80
-A -c OUTPUT -n any -v DROP -s @web
set create web ports 81
-P INPUT DROP
-P INPUT REJECT -n any
jump
set create x ports y
-A -c OUTPUT -n any -v DROP --id 0
-A -c SIDEWAYS -n any -v DROP --id x --dport 1 --sport 99999
-A -c OUTPUT --frobnicate DROP --dport 99999
-A -c OUTPUT -n any -v \"DROP
";
        let errors = Document::parse(text).unwrap_err();
        let places: Vec<_> = errors.iter().map(|error| (error.line, error.column)).collect();
        let expected = [
            (1, 37),
            (3, 29),
            (4, 32),
            (6, 32),
            (7, 12),
            (8, 14),
            (9, 10),
            (10, 1),
            (11, 20),
            (12, 29),
            (13, 7),
            (13, 36),
            (13, 56),
            (14, 14),
            (14, 40),
            (15, 24),
        ];
        assert_eq!(places, expected, "{errors:#?}");
        assert_eq!(
            errors[0].to_string(),
            "line 1, column 37: \"99999\" is no port: a number from 0 to 65535, or a range such as 8000:8080"
        );
        assert!(
            errors[2].message.contains("no such set") && errors[3].message.contains("a set of addresses is wanted")
        );
    }

    #[test]
    fn a_long_text_is_read_as_its_parts_are() {
        let (rule, remark) = ("-A -c OUTPUT -n any -v DROP --dport 80 --comment \"\u{fc}\"", "# \u{fc}\u{fc}");
        let mut text = format!("set create web ports 80\n{rule}\n");
        let mut wrong = Vec::new();
        while text.len() < 2 * LONG {
            text += &format!("{rule}\n\n{remark}\n");
        }
        for number in (5..text.lines().count()).step_by(9000) {
            wrong.push(number + 1);
        }
        let document = Document::parse(&text).unwrap();
        assert_eq!((document.rules.len(), document.sets.len()), (1 + (text.lines().count() - 2) / 3, 1));
        let change = |(index, line)| if wrong.contains(&(index + 1)) { "jump" } else { line };
        let text: Vec<&str> = text.lines().enumerate().map(change).collect();
        let errors = Document::parse(&text.join("\r\n")).unwrap_err();
        assert_eq!(errors.iter().map(|error| error.line).collect::<Vec<_>>(), wrong);
    }
}
