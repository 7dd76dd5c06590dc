//! `set`: named sets.

use std::io::Read;

use shared::control::{Changed, Done, Edit};
use shared::rule::quoted;
use shared::set::{Elements, Set, SetKind, SetName};

use super::listing;
use crate::Exit;
use crate::session::Session;
use crate::style::count;
use crate::suggest;
use crate::trouble::Trouble;

/// `set`.
#[derive(clap::Subcommand, Clone, PartialEq, Debug)]
pub enum SetCommand {
    /// Make a set.
    Create {
        /// Letters, digits, _ - and .; rules say @NAME.
        name: SetName,
        /// What is in it: addresses, ports or digests.
        #[arg(value_parser = suggest::set_kind)]
        kind: SetKind,
        /// With commas or blanks between; - reads them from the standard input.
        #[arg(value_name = "ELEMENT")]
        elements: Vec<String>,
    },
    /// Delete sets that no rule names.
    Delete {
        /// The sets.
        #[arg(value_name = "NAME", required = true)]
        names: Vec<SetName>,
    },
    /// Put elements into a set; those that are in it already do no harm.
    Add {
        /// The set.
        name: SetName,
        /// With commas or blanks between; - reads them from the standard input.
        #[arg(value_name = "ELEMENT", required = true)]
        elements: Vec<String>,
    },
    /// Take elements out of a set.
    Remove {
        /// The set.
        name: SetName,
        /// With commas or blanks between; - reads them from the standard input.
        #[arg(value_name = "ELEMENT", required = true)]
        elements: Vec<String>,
    },
    /// Take all elements out of a set.
    Flush {
        /// The set.
        name: SetName,
    },
    /// List all sets, or the elements of one.
    List {
        /// The set.
        name: Option<SetName>,
    },
}

/// The elements of all these words.
fn elements(words: &[String]) -> Result<Vec<String>, Trouble> {
    let mut found = Vec::new();
    for word in words {
        let mut text = word.clone();
        if word == "-" {
            text.clear();
            std::io::stdin()
                .lock()
                .read_to_string(&mut text)
                .map_err(|source| Trouble::Read { path: "standard input".into(), source })?;
        }
        found.extend(text.split([',', ' ', '\t', '\r', '\n']).filter(|text| !text.is_empty()).map(String::from));
    }
    Ok(found)
}

impl SetCommand {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let edit = match self {
            SetCommand::List { name } => return list(name.as_ref(), session),
            SetCommand::Delete { names } => {
                let edits = names.iter().map(|name| Edit::DeleteSet { name: name.clone() }).collect();
                let changed = session.change(edits)?;
                return show(&changed, names, session);
            }
            SetCommand::Create { name, kind, elements: words } => {
                let texts = elements(words)?;
                let elements = Elements::parse(*kind, texts.iter().map(String::as_str))
                    .map_err(|error| Trouble::Other(error.to_string()))?;
                Edit::CreateSet { set: Set { name: name.clone(), elements } }
            }
            SetCommand::Add { name, elements: words } => {
                Edit::AddElements { name: name.clone(), elements: elements(words)? }
            }
            SetCommand::Remove { name, elements: words } => {
                Edit::DeleteElements { name: name.clone(), elements: elements(words)? }
            }
            SetCommand::Flush { name } => Edit::FlushSet { name: name.clone() },
        };
        let name = match &edit {
            Edit::CreateSet { set } => set.name.clone(),
            Edit::AddElements { name, .. } | Edit::DeleteElements { name, .. } | Edit::FlushSet { name } => {
                name.clone()
            }
            _ => return Err(Trouble::OtherAnswer),
        };
        let changed = session.change(vec![edit])?;
        show(&changed, &[name], session)
    }
}

fn show(changed: &Changed, names: &[SetName], session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    if session.style.json {
        return session.json(changed);
    }
    for (done, name) in changed.done.iter().zip(names) {
        match done {
            Done::SetHas(elements) => writeln!(session.out(), "@{name} has {}", count(*elements, "element"))?,
            Done::SetDeleted => writeln!(session.out(), "deleted @{name}")?,
            _ => return Err(Trouble::OtherAnswer),
        }
    }
    Ok(Exit::Done)
}

fn list(name: Option<&SetName>, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    let sets = session.listing()?.sets;
    let style = session.style;
    let Some(name) = name else {
        if style.json {
            return session.json(&sets);
        }
        listing::write_sets(session.out(), &sets, style)?;
        return Ok(Exit::Done);
    };
    let Some(found) = sets.iter().find(|listed| listed.set.name == *name) else {
        let message = format!("there is no set {name}");
        return Err(Trouble::Missing(suggest::beside(
            message,
            name.as_str(),
            sets.iter().map(|listed| &listed.set.name),
        )));
    };
    if style.json {
        return session.json(found);
    }
    for text in found.set.elements.texts() {
        writeln!(session.out(), "{}", quoted(&text))?;
    }
    Ok(Exit::Done)
}
