//! Lists of values and of sets, and where values were taken from.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Error as _, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::values::{ContainerId, LONGEST_PATH};
use crate::Digest;
use crate::set::{SetKind, SetName};

/// Something of which a match can take several: one of them is enough, unless the match says otherwise.
pub trait Element: FromStr<Err: fmt::Display> + fmt::Display + Clone + PartialEq {
    /// The kind of sets that may stand for such elements.
    const SETS: Option<SetKind> = None;
    /// Its text may hold a comma, so each takes an option of its own.
    const ALONE: bool = false;

    /// Where it was taken from.
    fn label(&self) -> Option<&Label> {
        None
    }

    /// Says where it was taken from. False if such an element has no labels.
    fn set_label(&mut self, _label: Label) -> bool {
        false
    }
}

/// An element, or a set of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Item<T> {
    /// Itself.
    One(T),
    /// `@NAME`: those in this set, whatever they are at the time.
    Set(SetName),
}

/// One or more elements or sets: `192.0.2.0/24,@lan`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct List<T>(pub Vec<Item<T>>);

impl<T> From<T> for List<T> {
    fn from(element: T) -> List<T> {
        List(vec![Item::One(element)])
    }
}

impl<T: Element> List<T> {
    /// Names of the sets in it.
    pub fn sets(&self) -> impl Iterator<Item = &SetName> {
        self.0.iter().filter_map(|item| match item {
            Item::Set(name) => Some(name),
            Item::One(_) => None,
        })
    }

    /// The elements that are in it by themselves.
    pub fn elements(&self) -> impl Iterator<Item = &T> {
        self.0.iter().filter_map(|item| match item {
            Item::One(element) => Some(element),
            Item::Set(_) => None,
        })
    }

    /// Writes options that make this list.
    pub(super) fn write(&self, f: &mut fmt::Formatter<'_>, option: &str, negated: bool) -> fmt::Result {
        let negation = if negated { "! " } else { "" };
        let mut open = false;
        for (index, item) in self.0.iter().enumerate() {
            let label = match item {
                Item::One(element) => element.label(),
                Item::Set(_) => None,
            };
            let alone = T::ALONE || label.is_some();
            if open && !alone {
                write!(f, ",{item}")?;
            } else {
                let gap = if index > 0 { " " } else { "" };
                write!(f, "{gap}{negation}{option} {}", super::quoted(&item.to_string()))?;
            }
            if let Some(label) = label {
                write!(f, " --from {}", super::quoted(&label.to_string()))?;
            }
            open = !alone;
        }
        Ok(())
    }
}

impl<T: Element> FromStr for List<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<List<T>, String> {
        let parts: Vec<&str> = if T::ALONE { vec![text] } else { text.split(',').collect() };
        parts.into_iter().map(str::parse).collect::<Result<_, _>>().map(List)
    }
}

impl<T: Element> FromStr for Item<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Item<T>, String> {
        match (text.strip_prefix('@'), T::SETS) {
            (Some(name), Some(_)) => {
                name.parse().map(Item::Set).map_err(|error: crate::set::SetError| error.to_string())
            }
            _ => text.parse().map(Item::One).map_err(|error: T::Err| error.to_string()),
        }
    }
}

impl<T: Element> fmt::Display for Item<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Item::One(element) => element.fmt(f),
            Item::Set(name) => write!(f, "@{name}"),
        }
    }
}

impl<T: Element> Serialize for Item<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Item::One(element) if element.label().is_some() => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("value", &format_args!("{element}"))?;
                map.serialize_entry("from", &element.label())?;
                map.end()
            }
            _ => serializer.collect_str(self),
        }
    }
}

/// Reads an item: its text, a number if it is a port, or an object if there is more to say.
struct ItemForm<T>(PhantomData<T>);

impl<'de, T: Element> Visitor<'de> for ItemForm<T> {
    type Value = Item<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text, or {\"value\": ..., \"from\": ...}")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Item<T>, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Item<T>, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Item<T>, A::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Labelled {
            value: String,
            from: Label,
        }
        let Labelled { value, from } = Labelled::deserialize(MapAccessDeserializer::new(map))?;
        let mut element: T = value.parse().map_err(|error: T::Err| A::Error::custom(error))?;
        if element.set_label(from) {
            Ok(Item::One(element))
        } else {
            Err(A::Error::custom(format_args!("{value:?} takes no label")))
        }
    }
}

impl<'de, T: Element> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Item<T>, D::Error> {
        deserializer.deserialize_any(ItemForm(PhantomData))
    }
}

impl<T: Element> Serialize for List<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// Reads an array of items, or a single one.
struct ListForm<T>(PhantomData<T>);

impl<'de, T: Element> Visitor<'de> for ListForm<T> {
    type Value = List<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of texts, or a single one")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<List<T>, E> {
        ItemForm(self.0).visit_str(text).map(|item| List(vec![item]))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<List<T>, E> {
        ItemForm(self.0).visit_u64(number).map(|item| List(vec![item]))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<List<T>, A::Error> {
        ItemForm(self.0).visit_map(map).map(|item| List(vec![item]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<List<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        if items.is_empty() { Err(A::Error::custom("an empty list matches nothing")) } else { Ok(List(items)) }
    }
}

impl<'de, T: Element> Deserialize<'de> for List<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<T>, D::Error> {
        deserializer.deserialize_any(ListForm(PhantomData))
    }
}

/// An element that was taken from somewhere, as it was then.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Labelled<T> {
    /// The element: this alone is matched.
    pub value: T,
    /// Where it was taken from.
    pub from: Option<Label>,
}

impl<T> From<T> for Labelled<T> {
    fn from(value: T) -> Labelled<T> {
        Labelled { value, from: None }
    }
}

impl<T: FromStr> FromStr for Labelled<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Labelled<T>, T::Err> {
        text.parse().map(|value| Labelled { value, from: None })
    }
}

impl<T: fmt::Display> fmt::Display for Labelled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.value.fmt(f)
    }
}

impl Element for Labelled<Digest> {
    const SETS: Option<SetKind> = Some(SetKind::Digests);

    fn label(&self) -> Option<&Label> {
        self.from.as_ref()
    }

    fn set_label(&mut self, label: Label) -> bool {
        self.from = Some(label);
        true
    }
}

impl Element for Labelled<ContainerId> {
    fn label(&self) -> Option<&Label> {
        self.from.as_ref()
    }

    fn set_label(&mut self, label: Label) -> bool {
        self.from = Some(label);
        true
    }
}

/// What somebody named when they made a rule, and what was there put into it: `exe:/usr/bin/curl`. For people, and for
/// `ctl-fw refresh`, which looks again; never matched.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Label {
    /// Which option it was.
    pub kind: LabelKind,
    /// Its value: a path, a process id, a container's name.
    pub name: String,
}

/// Options that look something up when the rule is made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LabelKind {
    /// `--exe`: the digest of a program's file.
    Exe,
    /// `--lib`: the digest of a library's file.
    Lib,
    /// `--exec`: the aggregate that a program will have when it runs.
    Exec,
    /// `--pid`: the aggregate that a process had.
    Pid,
    /// `--container`: the id of the container of this name.
    Container,
}

impl LabelKind {
    /// All of them.
    pub const ALL: [LabelKind; 5] =
        [LabelKind::Exe, LabelKind::Lib, LabelKind::Exec, LabelKind::Pid, LabelKind::Container];

    /// For machines: stable.
    pub fn token(self) -> &'static str {
        match self {
            LabelKind::Exe => "exe",
            LabelKind::Lib => "lib",
            LabelKind::Exec => "exec",
            LabelKind::Pid => "pid",
            LabelKind::Container => "container",
        }
    }
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Label, String> {
        let known = |(token, name): (&str, &str)| {
            let kind = LabelKind::ALL.into_iter().find(|kind| kind.token() == token)?;
            let is_name = !name.is_empty() && name.len() <= LONGEST_PATH && !name.contains(char::is_control);
            is_name.then(|| Label { kind, name: name.into() })
        };
        text.split_once(':')
            .and_then(known)
            .ok_or_else(|| format!("{text:?} is no label: exe:PATH, lib:PATH, exec:PATH, pid:N or container:NAME"))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.token(), self.name)
    }
}
