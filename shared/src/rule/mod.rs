//! Rules: what they can say, and their text form.
//!
//! The text form is the command line that makes the rule: `-A -c OUTPUT -n host -v DROP -p tcp ! --dport 80,443`.

mod lists;
mod values;
mod words;

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::de::{DeserializeSeed, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

pub use lists::{Element, Item, Label, LabelKind, Labelled, List};
pub use values::{
    CgroupPath, ContainerId, Glob, IdRange, Interface, Net, OwnerClass, Per, PortRange, Rate, TimeWindow, Unit,
};
pub use words::{RuleError, Word, Words, quoted};

use crate::set::{SetKind, SetName};
use crate::{Chain, Digest, Protocol, Selector, Verdict};

macro_rules! match_options {
    ($($(#[doc = $doc:literal])+ $variant:ident $(($value:ty))? = $option:literal;)+) => {
        /// One thing a rule asks of a packet, or of the processes behind it.
        #[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
        #[serde(tag = "match", content = "value", rename_all = "kebab-case")]
        pub enum Match {
            $($(#[doc = $doc])+ $variant $(($value))?,)+
        }

        /// Which of them.
        #[derive(Clone, Copy, Debug, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        enum Kind {
            $($variant,)+
        }

        /// Reads the value of such a match.
        impl<'de> DeserializeSeed<'de> for Kind {
            type Value = Match;

            fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Match, D::Error> {
                match self { $(Kind::$variant => match_options!(@read deserializer $variant $($value)?),)+ }
            }
        }

        impl Match {
            /// The options that make matches, as the text form has them.
            pub const OPTIONS: &[&str] = &[$($option),+];

            /// The option that makes this match on the command line.
            pub fn option(&self) -> &'static str {
                match self { $(match_options!(@pattern $variant $($value)?) => $option,)+ }
            }
        }
    };
    (@read $deserializer:ident $variant:ident $value:ty) => {
        <$value>::deserialize($deserializer).map(Match::$variant)
    };
    (@read $deserializer:ident $variant:ident) => { <()>::deserialize($deserializer).map(|()| Match::$variant) };
    (@pattern $variant:ident $value:ty) => { Match::$variant(_) };
    (@pattern $variant:ident) => { Match::$variant };
}

match_options! {
    /// `-s`: the source address is in one of these networks.
    Source(List<Net>) = "-s";
    /// `-d`: the destination address is in one of these networks.
    Destination(List<Net>) = "-d";
    /// `-p`: the layer-4 protocol is one of these.
    Protocol(List<Protocol>) = "-p";
    /// `--sport`, host byte order. A protocol without ports never matches.
    SourcePort(List<PortRange>) = "--sport";
    /// `--dport`, host byte order. A protocol without ports never matches.
    DestinationPort(List<PortRange>) = "--dport";
    /// `-i`: the packet came in by one of these interfaces. One that came in by none never matches.
    InInterface(List<Interface>) = "-i";
    /// `-o`: the packet leaves by one of these interfaces. One that leaves by none never matches.
    OutInterface(List<Interface>) = "-o";
    /// `--netns`: the packet's socket is in one of these network namespaces.
    Netns(List<Selector>) = "--netns";
    /// `--sng-hash`: some object of the image has one of these digests.
    SngHash(List<Labelled<Digest>>) = "--sng-hash";
    /// `--all-hash`: for each of these digests, some object of the image has it.
    AllHash(List<Labelled<Digest>>) = "--all-hash";
    /// `--agg-hash`: the image's aggregate digest is one of these.
    AggHash(List<Labelled<Digest>>) = "--agg-hash";
    /// `--object-path`: some object of the image is mapped from such a path. Paths are what the process sees: whoever may
    /// write there, or make a mount namespace, chooses them.
    ObjectPath(List<Glob>) = "--object-path";
    /// `--program-path`: the program that the process runs has such a path; as weak as the match before.
    ProgramPath(List<Glob>) = "--program-path";
    /// `--uid`: the effective user id of the process is one of these.
    Uid(List<IdRange>) = "--uid";
    /// `--gid`: the effective group id of the process is one of these.
    Gid(List<IdRange>) = "--gid";
    /// `--cgroup`: the process is in one of these control groups, or below.
    Cgroup(List<CgroupPath>) = "--cgroup";
    /// `--unit`: the process belongs to one of these units of systemd.
    Unit(List<Unit>) = "--unit";
    /// `--container`: the process belongs to one of these containers.
    Container(List<Labelled<ContainerId>>) = "--container";
    /// `--owner`: whether anybody holds the packet's socket.
    Owner(OwnerClass) = "--owner";
    /// `--anon-exec`: the process has executable memory whose content no file holds.
    AnonExec = "--anon-exec";
    /// `--traced`: another process traces it (ptrace).
    Traced = "--traced";
    /// `--time`: it is this time of the week.
    Time(TimeWindow) = "--time";
    /// `--limit`: all else holds, and such packets have not been more frequent than this.
    Limit(Rate) = "--limit";
}

/// Runs `$body` with the list of a match that has one.
macro_rules! with_list {
    ($on:expr, $list:ident => $body:expr, _ => $otherwise:expr) => {
        match $on {
            Match::Source($list) | Match::Destination($list) => $body,
            Match::Protocol($list) => $body,
            Match::SourcePort($list) | Match::DestinationPort($list) => $body,
            Match::InInterface($list) | Match::OutInterface($list) => $body,
            Match::Netns($list) => $body,
            Match::SngHash($list) | Match::AllHash($list) | Match::AggHash($list) => $body,
            Match::ObjectPath($list) | Match::ProgramPath($list) => $body,
            Match::Uid($list) | Match::Gid($list) => $body,
            Match::Cgroup($list) => $body,
            Match::Unit($list) => $body,
            Match::Container($list) => $body,
            Match::Owner(_) | Match::AnonExec | Match::Traced | Match::Time(_) | Match::Limit(_) => $otherwise,
        }
    };
}

impl Match {
    /// The match of an option that takes no value. `None` if `option` is not one.
    fn flag(option: &str) -> Option<Match> {
        Some(match option {
            "--anon-exec" => Match::AnonExec,
            "--traced" => Match::Traced,
            _ => return None,
        })
    }

    /// Reads the value of a match option. `None` if `option` is not one that takes a value.
    fn parse(option: &str, value: &str) -> Option<Result<Match, String>> {
        fn read<T: FromStr<Err: fmt::Display>>(value: &str, make: fn(T) -> Match) -> Result<Match, String> {
            value.parse().map(make).map_err(|error: T::Err| error.to_string())
        }
        Some(match option {
            "-s" | "--source" => read(value, Match::Source),
            "-d" | "--destination" => read(value, Match::Destination),
            "-p" | "--protocol" => read(value, Match::Protocol),
            "--sport" => read(value, Match::SourcePort),
            "--dport" => read(value, Match::DestinationPort),
            "-i" | "--in-interface" => read(value, Match::InInterface),
            "-o" | "--out-interface" => read(value, Match::OutInterface),
            "--netns" => read(value, Match::Netns),
            "--sng-hash" => read(value, Match::SngHash),
            "--all-hash" => read(value, Match::AllHash),
            "--agg-hash" => read(value, Match::AggHash),
            "--object-path" => read(value, Match::ObjectPath),
            "--program-path" => read(value, Match::ProgramPath),
            "--uid" => read(value, Match::Uid),
            "--gid" => read(value, Match::Gid),
            "--cgroup" => read(value, Match::Cgroup),
            "--unit" => read(value, Match::Unit),
            "--container" => read(value, Match::Container),
            "--owner" => read(value, Match::Owner),
            "--time" => read(value, Match::Time),
            "--limit" => read(value, Match::Limit),
            _ => return None,
        })
    }

    /// Whether the answer depends on who sends, not only on the packet itself.
    pub fn is_identity(&self) -> bool {
        matches!(
            self,
            Match::SngHash(_)
                | Match::AllHash(_)
                | Match::AggHash(_)
                | Match::ObjectPath(_)
                | Match::ProgramPath(_)
                | Match::Owner(_)
        ) || self.is_beyond_files()
    }

    /// Whether the answer depends on more of a process than the files it has mapped.
    pub fn is_beyond_files(&self) -> bool {
        matches!(
            self,
            Match::Uid(_)
                | Match::Gid(_)
                | Match::Cgroup(_)
                | Match::Unit(_)
                | Match::Container(_)
                | Match::AnonExec
                | Match::Traced
        )
    }

    /// Sets it names, and of which kind each must be.
    pub fn sets(&self) -> Vec<(&SetName, SetKind)> {
        fn of<T: Element>(list: &List<T>) -> Vec<(&SetName, SetKind)> {
            T::SETS.map_or_else(Vec::new, |kind| list.sets().map(|name| (name, kind)).collect())
        }
        with_list!(self, list => of(list), _ => Vec::new())
    }

    /// Labels of what is in it.
    pub fn labels(&self) -> Vec<&Label> {
        fn of<T: Element>(list: &List<T>) -> Vec<&Label> {
            list.elements().filter_map(Element::label).collect()
        }
        with_list!(self, list => of(list), _ => Vec::new())
    }

    /// Says where the last element was taken from.
    fn set_label(&mut self, label: Label) -> bool {
        fn of<T: Element>(list: &mut List<T>, label: Label) -> bool {
            match list.0.last_mut() {
                Some(Item::One(element)) => element.set_label(label),
                _ => false,
            }
        }
        with_list!(self, list => of(list, label), _ => false)
    }

    /// Takes in the elements of a match made by the same option. Gives it back if it cannot.
    fn merge(&mut self, other: Match) -> Result<(), Match> {
        macro_rules! merge {
            ($($variant:ident),+) => {
                match (self, other) {
                    $((Match::$variant(list), Match::$variant(more)) => list.0.extend(more.0),)+
                    (_, other) => return Err(other),
                }
            };
        }
        merge!(
            Source,
            Destination,
            Protocol,
            SourcePort,
            DestinationPort,
            InInterface,
            OutInterface,
            Netns,
            SngHash,
            AllHash,
            AggHash,
            ObjectPath,
            ProgramPath,
            Uid,
            Gid,
            Cgroup,
            Unit,
            Container
        );
        Ok(())
    }
}

/// A match, or its opposite.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
pub struct Predicate {
    /// The predicate holds where `on` does not.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub negated: bool,
    /// What is asked.
    #[serde(flatten)]
    pub on: Match,
}

/// Written out, because serde would hold back every value until it has seen all keys, and rulesets are long.
impl<'de> Deserialize<'de> for Predicate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Predicate, D::Error> {
        #[derive(Deserialize)]
        #[serde(field_identifier, rename_all = "kebab-case")]
        enum Key {
            Negated,
            Match,
            Value,
        }

        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Predicate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a match: {\"match\": ..., \"value\": ..., \"negated\": ...}")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Predicate, A::Error> {
                let (mut negated, mut kind, mut on, mut early) = (None, None, None, None);
                while let Some(key) = map.next_key()? {
                    let is_new = match key {
                        Key::Negated => negated.replace(map.next_value()?).is_none(),
                        Key::Match => kind.replace(map.next_value()?).is_none(),
                        Key::Value if on.is_some() || early.is_some() => false,
                        Key::Value => {
                            match kind {
                                Some(kind) => on = Some(map.next_value_seed::<Kind>(kind)?),
                                None => early = Some(map.next_value::<serde_json::Value>()?),
                            }
                            true
                        }
                    };
                    if !is_new {
                        return Err(A::Error::custom("a key of a match is there twice"));
                    }
                }
                let kind: Kind = kind.ok_or_else(|| A::Error::missing_field("match"))?;
                let on = match (on, early) {
                    (Some(on), _) => on,
                    (None, Some(value)) => kind.deserialize(value).map_err(A::Error::custom)?,
                    // Only those that take none can do without.
                    (None, None) => {
                        kind.deserialize(serde_json::Value::Null).map_err(|_| A::Error::missing_field("value"))?
                    }
                };
                Ok(Predicate { negated: negated.unwrap_or(false), on })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

impl Predicate {
    /// A match option that takes no value. `None` if `option` is not one.
    pub fn flag(negated: bool, option: &str) -> Option<Predicate> {
        Match::flag(option).map(|on| Predicate { negated, on })
    }

    /// Reads one match option as the command line has it. `None` if `option` is not one that takes a value.
    ///
    /// # Errors
    /// A sentence about the value.
    pub fn parse(negated: bool, option: &str, value: &str) -> Option<Result<Predicate, String>> {
        Match::parse(option, value).map(|on| on.map(|on| Predicate { negated, on }))
    }

    /// Puts a predicate beside those that were read before. An option that is given again adds to its list: one of all is
    /// enough, or if it is negated, none must hold.
    ///
    /// # Errors
    /// The option takes a single value and has it.
    pub fn add_to(self, predicates: &mut Vec<Predicate>) -> Result<(), String> {
        let option = self.on.option();
        let is_same = |other: &&mut Predicate| other.on.option() == option && other.negated == self.negated;
        match predicates.iter_mut().find(is_same) {
            Some(same) => same.on.merge(self.on).map_err(|_| "given twice".into()),
            None => {
                predicates.push(self);
                Ok(())
            }
        }
    }

    /// Says where the element that was read last was taken from.
    ///
    /// # Errors
    /// It takes no label.
    pub fn set_label(&mut self, label: Label) -> Result<(), String> {
        let option = self.on.option();
        if self.on.set_label(label) { Ok(()) } else { Err(format!("{option} takes no --from")) }
    }
}

impl fmt::Display for Predicate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (option, negated) = (self.on.option(), self.negated);
        let negation = if negated { "! " } else { "" };
        with_list!(&self.on, list => list.write(f, option, negated), _ => match &self.on {
            Match::Owner(class) => write!(f, "{negation}{option} {class}"),
            Match::Time(window) => write!(f, "{negation}{option} {window}"),
            Match::Limit(rate) => write!(f, "{negation}{option} {rate}"),
            _ => write!(f, "{negation}{option}"),
        })
    }
}

/// `-l`: which header carries the signature of packets this rule accepts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureLayer {
    /// An IP option.
    L3,
    /// A TCP or UDP option.
    L4,
}

impl fmt::Display for SignatureLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SignatureLayer::L3 => "l3",
            SignatureLayer::L4 => "l4",
        })
    }
}

impl FromStr for SignatureLayer {
    type Err = String;

    fn from_str(text: &str) -> Result<SignatureLayer, String> {
        match text {
            "l3" => Ok(SignatureLayer::L3),
            "l4" => Ok(SignatureLayer::L4),
            _ => Err(format!("{text:?} is not l3 or l4")),
        }
    }
}

/// Which of a rule's packets an event tells of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Log {
    /// As the daemon was told for all: those that do not pass.
    #[default]
    Default,
    /// `--log`: all.
    Always,
    /// `--no-log`: none.
    Never,
}

/// What somebody wrote about a rule: at most 256 bytes, no control characters.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct Comment(String);

/// Bytes of the longest comment, as in iptables.
const LONGEST_COMMENT: usize = 256;

impl Comment {
    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Comment {
    type Err = String;

    fn from_str(text: &str) -> Result<Comment, String> {
        if text.len() > LONGEST_COMMENT {
            return Err(format!("a comment has at most {LONGEST_COMMENT} bytes, this has {}", text.len()));
        }
        if text.contains(char::is_control) {
            return Err("a comment has no line ends or other control characters".into());
        }
        Ok(Comment(text.into()))
    }
}

impl<'de> Deserialize<'de> for Comment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Comment, D::Error> {
        from_text(deserializer)
    }
}

/// A rule: where it holds, what it asks, and what happens then. A rule without predicates matches every packet.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// The chain.
    pub chain: Chain,
    /// The namespaces.
    pub namespace: Selector,
    /// What happens to a packet for which every predicate holds.
    pub verdict: Verdict,
    /// All must hold.
    #[serde(default)]
    pub predicates: Vec<Predicate>,
    /// Where the signature of an accepted packet goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature_layer: Option<SignatureLayer>,
    /// When the rule is gone by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
    /// Which packets are told of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub log: Log,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<Comment>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "-A -c {} -n {} -v {}", self.chain, quoted(&self.namespace.to_string()), self.verdict)?;
        for predicate in &self.predicates {
            write!(f, " {predicate}")?;
        }
        if let Some(layer) = self.signature_layer {
            write!(f, " -l {layer}")?;
        }
        if let Some(until) = self.until {
            write!(f, " --until {until}")?;
        }
        match self.log {
            Log::Default => {}
            Log::Always => f.write_str(" --log")?,
            Log::Never => f.write_str(" --no-log")?,
        }
        match &self.comment {
            Some(comment) => write!(f, " --comment {}", quoted(comment.as_str())),
            None => Ok(()),
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    /// Reads what `Display` writes. The leading `-A` may be missing; `-!` is the same as `!`; `! -n NAMESPACE` is a rule for
    /// any other namespace.
    fn from_str(text: &str) -> Result<Rule, RuleError> {
        let mut words = Words::new(text);
        let mut draft = Draft::default();
        let mut is_first = true;
        while let Some(word) = words.next().transpose()? {
            if !(std::mem::take(&mut is_first) && word.text == "-A") {
                draft.take(&word, &mut words)?;
            }
        }
        draft.finish(words.end())
    }
}

/// A rule of which not all options are read yet.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    chain: Option<Chain>,
    namespace: Option<Selector>,
    verdict: Option<Verdict>,
    predicates: Vec<Predicate>,
    /// Where the predicate is that was read last.
    last: Option<usize>,
    signature_layer: Option<SignatureLayer>,
    until: Option<Timestamp>,
    log: Option<Log>,
    comment: Option<Comment>,
    /// Column of a negation that waits for its option.
    negation: Option<usize>,
}

/// Options that take a value and make no match.
const DRAFT_OPTIONS: [&str; 7] = ["-c", "-n", "-v", "-l", "--until", "--comment", "--from"];

impl Draft {
    /// Reads one option of a rule's text: `word`, and its value from `rest`.
    ///
    /// # Errors
    /// It is none, or its value is wrong.
    pub fn take<'a>(&mut self, word: &Word<'a>, rest: &mut Words<'a>) -> Result<(), RuleError> {
        let column = word.column;
        let option = word.text.as_ref();
        let fail = |message: String| RuleError { column, message };
        if matches!(option, "!" | "-!") {
            return match self.negation.replace(column) {
                None => Ok(()),
                Some(_) => Err(fail("negated twice".into())),
            };
        }
        let negated = self.negation.take().is_some();
        if let Some(predicate) = Predicate::flag(negated, option) {
            return self.add(predicate).map_err(fail);
        }
        let log = match option {
            "--log" => Some(Log::Always),
            "--no-log" => Some(Log::Never),
            _ => None,
        };
        if !negated && let Some(log) = log {
            return set(&mut self.log, log).map_err(fail);
        }
        let value = rest.next().transpose()?.ok_or_else(|| {
            let is_known = DRAFT_OPTIONS.contains(&option) || Match::parse(option, "").is_some();
            fail(if is_known { format!("{option} wants a value") } else { format!("unknown option {option:?}") })
        })?;
        let at_value = |message: String| RuleError { column: value.column, message };
        let value = value.text.as_ref();
        if let Some(predicate) = Predicate::parse(negated, option, value) {
            return predicate.and_then(|predicate| self.add(predicate)).map_err(at_value);
        }
        if negated && option == "-n" {
            set(&mut self.namespace, Selector::Any).map_err(&at_value)?;
            let other: Selector = read(value).map_err(&at_value)?;
            if other == Selector::Any {
                return Err(at_value("none but any leaves no namespace".into()));
            }
            return self.add(Predicate { negated, on: Match::Netns(List::from(other)) }).map_err(at_value);
        }
        if negated {
            return Err(fail(format!("{option} cannot be negated")));
        }
        match option {
            "-c" => read(value).and_then(|chain| set(&mut self.chain, chain)),
            "-n" => read(value).and_then(|namespace| set(&mut self.namespace, namespace)),
            "-v" => read(value).and_then(|verdict| set(&mut self.verdict, verdict)),
            "-l" => read(value).and_then(|layer| set(&mut self.signature_layer, layer)),
            "--until" => read(value).and_then(|until| set(&mut self.until, until)),
            "--comment" => read(value).and_then(|comment| set(&mut self.comment, comment)),
            "--from" => read(value).and_then(|label| match self.last {
                Some(last) => self.predicates[last].set_label(label),
                None => Err("--from stands after what it is about".into()),
            }),
            _ => return Err(fail(format!("unknown option {option:?}"))),
        }
        .map_err(at_value)
    }

    fn add(&mut self, predicate: Predicate) -> Result<(), String> {
        let (option, negated) = (predicate.on.option(), predicate.negated);
        predicate.add_to(&mut self.predicates)?;
        self.last = self.predicates.iter().position(|other| other.on.option() == option && other.negated == negated);
        Ok(())
    }

    /// The rule. `end` is the column after its last word.
    ///
    /// # Errors
    /// Something is missing.
    pub fn finish(self, end: usize) -> Result<Rule, RuleError> {
        let missing = |what: &str| RuleError { column: end, message: format!("{what} is missing") };
        if let Some(column) = self.negation {
            return Err(RuleError { column, message: "nothing follows the negation".into() });
        }
        Ok(Rule {
            chain: self.chain.ok_or_else(|| missing("the chain (-c)"))?,
            namespace: self.namespace.ok_or_else(|| missing("the namespace (-n)"))?,
            verdict: self.verdict.ok_or_else(|| missing("the verdict (-v)"))?,
            predicates: self.predicates,
            signature_layer: self.signature_layer,
            until: self.until,
            log: self.log.unwrap_or_default(),
            comment: self.comment,
        })
    }
}

fn read<T: FromStr<Err: fmt::Display>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|error: T::Err| error.to_string())
}

fn set<T>(slot: &mut Option<T>, value: T) -> Result<(), String> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err("given twice".into()),
    }
}

/// Deserialises what `Display` wrote.
pub(crate) fn from_text<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A list, some of whose items are sets where there are such.
    fn list<T: Element + fmt::Debug + 'static>(element: impl Strategy<Value = T> + 'static) -> BoxedStrategy<List<T>> {
        let set = "[a-z]{1,8}".prop_map(|name| name.parse().unwrap());
        let item = (element, set, 0..4u8).prop_map(|(element, set, dice)| {
            if dice == 0 && T::SETS.is_some() { Item::Set(set) } else { Item::One(element) }
        });
        prop::collection::vec(item, 1..4).prop_map(List).boxed()
    }

    fn labelled<T: Clone + fmt::Debug + 'static>(
        value: impl Strategy<Value = T> + 'static,
    ) -> BoxedStrategy<Labelled<T>> {
        let label = ("[ -~]{1,20}", 0..LabelKind::ALL.len())
            .prop_map(|(name, kind)| Label { kind: LabelKind::ALL[kind], name });
        (value, prop::option::of(label)).prop_map(|(value, from)| Labelled { value, from }).boxed()
    }

    fn parsed<T: FromStr<Err: fmt::Debug> + fmt::Debug + 'static>(pattern: &'static str) -> BoxedStrategy<T> {
        pattern.prop_map(|text: String| text.parse().unwrap()).boxed()
    }

    fn any_match() -> impl Strategy<Value = Match> {
        let net4 = (any::<[u8; 4]>(), 0..=32u8).prop_map(|(a, l)| Net(ipnet::IpNet::new(a.into(), l).unwrap().trunc()));
        let net6 =
            (any::<[u8; 16]>(), 0..=128u8).prop_map(|(a, l)| Net(ipnet::IpNet::new(a.into(), l).unwrap().trunc()));
        let net = prop_oneof![net4, net6].boxed();
        let port =
            (any::<u16>(), any::<u16>()).prop_map(|(a, b)| PortRange { first: a.min(b), last: a.max(b) }).boxed();
        let id = (any::<u32>(), any::<u32>()).prop_map(|(a, b)| IdRange { first: a.min(b), last: a.max(b) }).boxed();
        let interface = parsed::<Interface>("[a-z]{1,8}[0-9]{1,3}\\+?");
        let digest = labelled(any::<[u8; 32]>().prop_map(Digest)).boxed();
        let glob = parsed::<Glob>("/[a-z *?$`\"\\\\]{0,12}x");
        let window = (1..=EVERY_DAY, 0..1440u16, 0..=1440u16, any::<bool>())
            .prop_map(|(days, from, to, utc)| TimeWindow { days, from, to, utc });
        let rate = (1..u32::MAX, 1..u32::MAX).prop_map(|(packets, burst)| Rate { packets, per: Per::Hour, burst });
        prop_oneof![
            list(net.clone()).prop_map(Match::Source),
            list(net).prop_map(Match::Destination),
            list(any::<u8>().prop_map(Protocol)).prop_map(Match::Protocol),
            list(port.clone()).prop_map(Match::SourcePort),
            list(port).prop_map(Match::DestinationPort),
            list(interface.clone()).prop_map(Match::InInterface),
            list(interface).prop_map(Match::OutInterface),
            list(any_selector()).prop_map(Match::Netns),
            list(digest.clone()).prop_map(Match::SngHash),
            list(digest.clone()).prop_map(Match::AllHash),
            list(digest).prop_map(Match::AggHash),
            list(glob.clone()).prop_map(Match::ObjectPath),
            list(glob).prop_map(Match::ProgramPath),
            list(id.clone()).prop_map(Match::Uid),
            list(id).prop_map(Match::Gid),
            list(parsed::<CgroupPath>("/[a-z. ]{1,9}x")).prop_map(Match::Cgroup),
            list(parsed::<Unit>("[a-z@]{1,9}")).prop_map(Match::Unit),
            list(labelled(parsed::<ContainerId>("[0-9a-f]{12,64}"))).prop_map(Match::Container),
            prop_oneof![Just(OwnerClass::Owned), Just(OwnerClass::Unowned), Just(OwnerClass::Undetermined)]
                .prop_map(Match::Owner),
            Just(Match::AnonExec),
            Just(Match::Traced),
            window.prop_map(Match::Time),
            rate.prop_map(Match::Limit),
        ]
    }

    const EVERY_DAY: u8 = 0x7f;

    fn any_selector() -> BoxedStrategy<Selector> {
        prop_oneof![
            Just(Selector::Any),
            Just(Selector::Host),
            "[a-zA-Z0-9_.,$-]{1,20}x".prop_map(Selector::Named),
            any::<u64>()
                .prop_map(|cookie| Selector::Lifetime { cookie, boot: "6e6cd9d5-4a0d-4a42-9a4c-0c9a7b1b4c11".into() }),
        ]
        .boxed()
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        let chain = prop_oneof![Just(Chain::Output), Just(Chain::Input), Just(Chain::Forward)];
        let verdict = prop_oneof![Just(Verdict::Accept), Just(Verdict::Drop), Just(Verdict::Reject)];
        let predicate = (any::<bool>(), any_match()).prop_map(|(negated, on)| Predicate { negated, on });
        let predicates = prop::collection::vec(predicate, 0..6).prop_map(|all| {
            // Two of the same option are one.
            let mut predicates = Vec::new();
            all.into_iter().for_each(|predicate| drop(predicate.add_to(&mut predicates)));
            predicates
        });
        let layer = prop_oneof![Just(None), Just(Some(SignatureLayer::L3)), Just(Some(SignatureLayer::L4))];
        let until = prop::option::of((0..4_000_000_000i64).prop_map(|second| Timestamp::from_second(second).unwrap()));
        let log = prop_oneof![Just(Log::Default), Just(Log::Always), Just(Log::Never)];
        let comment = prop::option::of(parsed::<Comment>("[ -~]{0,30}"));
        (chain, any_selector(), verdict, predicates, (layer, until, log, comment)).prop_map(
            |(chain, namespace, verdict, predicates, (signature_layer, until, log, comment))| Rule {
                chain,
                namespace,
                verdict,
                predicates,
                signature_layer,
                until,
                log,
                comment,
            },
        )
    }

    proptest! {
        #[test]
        fn text_round_trips(rule in any_rule()) {
            let text = rule.to_string();
            prop_assert_eq!(text.parse::<Rule>(), Ok(rule), "{}", text);
        }

        #[test]
        fn json_round_trips(rule in any_rule()) {
            let json = serde_json::to_string(&rule).unwrap();
            prop_assert_eq!(serde_json::from_str::<Rule>(&json).unwrap(), rule);
        }

        #[test]
        fn no_text_panics(text in "[ !a-z0-9./:,@*\"\\\\-]{0,80}") {
            let _ = text.parse::<Rule>();
        }

        #[test]
        fn no_value_panics(option in 0..Match::OPTIONS.len(), value in "\\PC{0,30}") {
            let _ = Predicate::parse(false, Match::OPTIONS[option], &value);
        }
    }

    fn predicates(text: &str) -> Vec<String> {
        let rule: Rule = format!("-c OUTPUT -n any -v DROP {text}").parse().unwrap();
        rule.predicates.iter().map(Predicate::to_string).collect()
    }

    #[test]
    fn errors_name_the_word() {
        let error = |text: &str| text.parse::<Rule>().unwrap_err();
        assert_eq!(error("-A -c OUTPUT -n any -v DROP --dport 65536").column, 37);
        assert_eq!(error("-A -c SIDEWAYS").column, 7);
        assert_eq!(error("-A -c OUTPUT -v DROP").message, "the namespace (-n) is missing");
        assert_eq!(error("-c OUTPUT ! -v DROP").message, "-v cannot be negated");
        assert_eq!(error("-c OUTPUT -c INPUT").message, "given twice");
        assert_eq!(error("-c OUTPUT -n any -v DROP !").message, "nothing follows the negation");
        assert!(error("-c OUTPUT -n any -v DROP --sng-hash abc").message.contains("64 hex digits"));
        assert!(error("--frobnicate 1").message.contains("unknown option"));
        assert_eq!(error("-s").message, "-s wants a value");
        assert_eq!(error("-c OUTPUT -n any -v DROP ! --traced !").message, "nothing follows the negation");
        assert_eq!(error("-p tcp --limit 1/s --limit 2/s").message, "given twice");
        assert_eq!(error("--dport 80 --from exe:/x").message, "--dport takes no --from");
        assert_eq!(error("! ! -p tcp").message, "negated twice");
        assert_eq!(error("--comment \"a").message, "a quote is not closed");
    }

    #[test]
    fn flags_take_no_value() {
        assert_eq!(predicates("--anon-exec -! --traced -p tcp"), ["--anon-exec", "! --traced", "-p tcp"]);
        let rule: Rule = "-c OUTPUT -n any -v DROP --anon-exec -! --traced".parse().unwrap();
        let json = serde_json::to_value(&rule.predicates).unwrap();
        assert_eq!(json[0], serde_json::json!({ "match": "anon-exec" }));
        assert_eq!(json[1], serde_json::json!({ "match": "traced", "negated": true }));
    }

    #[test]
    fn lists_grow_with_each_option() {
        assert_eq!(predicates("-s 10.0.0.0/8 -p tcp -s ::1,@lan"), ["-s 10.0.0.0/8,::1/128,@lan", "-p tcp"]);
        assert_eq!(predicates("--dport 80,443 ! --dport 8000:8100"), ["--dport 80,443", "! --dport 8000:8100"]);
        assert_eq!(predicates("-o eth+ -o lo"), ["-o eth+ -o lo"]);
        let (a, b) = ("a".repeat(64), "b".repeat(64));
        let text = format!("--sng-hash {a} --from \"exe:/opt/my app\" --sng-hash {b}");
        assert_eq!(predicates(&text), [text]);
        let text = format!("--sng-hash {a},{b} --from exe:/x");
        assert_eq!(predicates(&text), [format!("--sng-hash {a} --sng-hash {b} --from exe:/x")]);
    }

    #[test]
    fn a_rule_for_all_namespaces_but_one() {
        let rule: Rule = "-c OUTPUT ! -n host -v DROP".parse().unwrap();
        assert_eq!(rule.to_string(), "-A -c OUTPUT -n any -v DROP ! --netns host");
        assert!("-c OUTPUT ! -n host -n blue -v DROP".parse::<Rule>().is_err());
        assert!("-c OUTPUT ! -n any -v DROP".parse::<Rule>().is_err());
    }

    /// As databases of version 0.1 have them.
    #[test]
    fn single_values_of_old_are_lists_of_one() {
        let json = r#"{"chain":"OUTPUT","namespace":"host","verdict":"DROP","predicates":[
            {"match":"destination","value":"10.0.0.0/8"},{"match":"protocol","value":"tcp"},
            {"match":"destination-port","value":80},{"negated":true,"match":"traced"}]}"#;
        let rule: Rule = serde_json::from_str(json).unwrap();
        assert_eq!(rule.to_string(), "-A -c OUTPUT -n host -v DROP -d 10.0.0.0/8 -p tcp --dport 80 ! --traced");
    }
}
