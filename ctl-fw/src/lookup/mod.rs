//! What a rule names, looked up when it is made: files, programs, processes, containers, users, namespaces, times.

mod container;
mod ids;
mod process;

use std::path::Path;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use shared::rule::{Item, Label, LabelKind, List};
use shared::{Digest, Match, Predicate, Rule, Selector};

use crate::args::RuleArgs;
use crate::hash::{self, HashError};
use crate::namespace::{self, NamespaceError};
use crate::program::{self, ProgramError};
use crate::progress::Progress;
use crate::rule_options::Part;

pub(crate) use container::ContainerError;
pub(crate) use ids::{group_name, numbers as ids_in, user_name};
pub(crate) use process::ProcessError;
#[cfg(test)]
pub(crate) use process::aggregate_of;

/// Why a rule cannot be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LookupError {
    #[error("--chain CHAIN is missing")]
    NoChain,
    #[error("--verdict VERDICT is missing")]
    NoVerdict,
    #[error(transparent)]
    Namespace(#[from] NamespaceError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Process(#[from] ProcessError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error("{option}: {message}")]
    Option { option: String, message: String },
    #[error("--until: {0}")]
    Time(#[from] jiff::Error),
    #[error("the rule would be over before it begins: {0}")]
    Over(Timestamp),
}

/// A rule that was made, and what is to be known of it.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) rule: Rule,
    /// Sentences.
    pub(crate) notes: Vec<String>,
}

/// Makes the rule that was typed.
pub(crate) fn rule(args: &RuleArgs, progress: &mut Progress<'_>) -> Result<Made, LookupError> {
    let chain = args.chain.ok_or(LookupError::NoChain)?;
    let verdict = args.verdict.ok_or(LookupError::NoVerdict)?;
    let (namespace, mut predicates) = match &args.namespace {
        None => (namespace::own()?, Vec::new()),
        Some(place) => match (place.negated, namespace::absolute(&place.selector)?) {
            (false, selector) => (selector, Vec::new()),
            (true, other) => (Selector::Any, vec![Predicate { negated: true, on: Match::Netns(List::from(other)) }]),
        },
    };
    let mut notes = Vec::new();
    // Where the predicate is that was read last.
    let mut last = None;
    for part in &args.parts.0 {
        if let Part::From(label) = part {
            let labelled = match last {
                Some(last) => {
                    let last: &mut Predicate = &mut predicates[last];
                    last.set_label(label.clone())
                }
                None => Err("it stands after what it is about".into()),
            };
            labelled.map_err(|message| LookupError::Option { option: "--from".into(), message })?;
            continue;
        }
        for predicate in resolve(part, &mut notes, progress)? {
            let (option, negated) = (predicate.on.option(), predicate.negated);
            predicate
                .add_to(&mut predicates)
                .map_err(|message| LookupError::Option { option: option.into(), message })?;
            last = predicates.iter().position(|other| other.on.option() == option && other.negated == negated);
        }
    }
    let now = Timestamp::now();
    let until = args.end().map(|end| end.resolve(now, &TimeZone::system())).transpose()?;
    if let Some(until) = until.filter(|until| *until <= now) {
        return Err(LookupError::Over(until));
    }
    let rule = Rule {
        chain,
        namespace,
        verdict,
        predicates,
        signature_layer: args.signature_layer,
        // Fractions of a second mean nothing here.
        until: until.map(|until| Timestamp::from_second(until.as_second()).unwrap_or(until)),
        log: args.log(),
        comment: args.comment.clone(),
    };
    Ok(Made { rule, notes })
}

fn resolve(part: &Part, notes: &mut Vec<String>, progress: &mut Progress<'_>) -> Result<Vec<Predicate>, LookupError> {
    Ok(match part {
        Part::Match(Predicate { negated, on: Match::Netns(list) }) => {
            let absolute = |item: &Item<Selector>| match item {
                Item::One(selector) => namespace::absolute(selector).map(Item::One),
                Item::Set(name) => Ok(Item::Set(name.clone())),
            };
            let list = list.0.iter().map(absolute).collect::<Result<_, _>>()?;
            vec![Predicate { negated: *negated, on: Match::Netns(List(list)) }]
        }
        Part::Match(predicate) => vec![predicate.clone()],
        Part::Ids { groups, negated, names } => {
            let option = if *groups { "--gid" } else { "--uid" };
            let numbers = ids::numbers(names, *groups);
            vec![matching(
                option,
                *negated,
                &numbers.map_err(|message| LookupError::Option { option: option.into(), message })?,
            )?]
        }
        Part::Lookup { kind: LabelKind::Container, negated, name } => {
            let mut found = Vec::new();
            for name in name.split(',') {
                found.push(match matching("--container", *negated, name) {
                    Ok(by_id) => by_id,
                    Err(_) => {
                        let id = container::id_of(name)?;
                        labelled("--container", *negated, &id, LabelKind::Container, name)?
                    }
                });
            }
            found
        }
        Part::Lookup { kind, negated, name } => {
            let (option, name, digest) = digest(*kind, name, notes, progress)?;
            vec![labelled(option, *negated, &digest.to_string(), *kind, &name)?]
        }
        Part::From(_) => Vec::new(),
    })
}

/// What `--exe`, `--lib`, `--exec` and `--pid` stand for now: the match option, the label's name, the digest.
fn digest(
    kind: LabelKind,
    name: &str,
    notes: &mut Vec<String>,
    progress: &mut Progress<'_>,
) -> Result<(&'static str, String, Digest), LookupError> {
    let option = |message: String| LookupError::Option { option: format!("--{}", kind.token()), message };
    match kind {
        LabelKind::Exe | LabelKind::Lib => {
            let (real, digest) = hash::hash_file(Path::new(name), progress)?;
            let elf = program::is_elf(&real);
            if !elf && kind == LabelKind::Exe {
                notes.push(format!(
                    "{name} is no ELF file: if it is a script, its program is the interpreter, and this rule will not \
                     match it"
                ));
            }
            Ok(("--sng-hash", place(name, &real).map_err(option)?, digest))
        }
        LabelKind::Exec => {
            let program = program::predict(Path::new(name), progress)?;
            notes.extend(program.note());
            Ok(("--agg-hash", place(name, &program.path).map_err(option)?, program.aggregate()))
        }
        LabelKind::Pid => {
            let pid: u32 = name.parse().map_err(|_| option(format!("{name:?} is no process id")))?;
            Ok(("--agg-hash", pid.to_string(), process::aggregate_of(pid, progress)?))
        }
        LabelKind::Container => Err(option("no digest".into())),
    }
}

/// The path as it was given, for a label: where it leads may be another file after an upgrade. What leads through /proc means
/// another file to each process.
fn place(given: &str, real: &Path) -> Result<String, String> {
    let given = std::path::absolute(given).map_err(|error| error.to_string())?;
    let leads_anywhere = given.starts_with("/proc") || given.starts_with("/dev");
    text(if leads_anywhere { real } else { &given })
}

fn text(path: &Path) -> Result<String, String> {
    path.to_str().map(String::from).ok_or_else(|| format!("{} is not UTF-8, a label must be", path.display()))
}

fn matching(option: &str, negated: bool, value: &str) -> Result<Predicate, LookupError> {
    let error = |message| LookupError::Option { option: option.into(), message };
    Predicate::parse(negated, option, value).unwrap_or_else(|| Err("no match option".into())).map_err(error)
}

fn labelled(option: &str, negated: bool, value: &str, kind: LabelKind, name: &str) -> Result<Predicate, LookupError> {
    let mut predicate = matching(option, negated, value)?;
    let label: Result<Label, String> = format!("{}:{name}", kind.token()).parse();
    label
        .and_then(|label| predicate.set_label(label))
        .map_err(|message| LookupError::Option { option: format!("--{}", kind.token()), message })?;
    Ok(predicate)
}
