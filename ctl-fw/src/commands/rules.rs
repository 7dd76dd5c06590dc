//! `-A`, `-I`, `-D`, `-L`, `-F`, `-P`, and `rule`: single rules and policies.

use shared::control::{Answer, Changed, Done, Edit, ListedRule, Request};
use shared::{Chain, Selector, Verdict};

use super::listing;
use crate::Exit;
use crate::args::RuleArgs;
use crate::session::Session;
use crate::style::count;
use crate::trouble::Trouble;
use crate::{lookup, namespace};

/// `rule`.
#[derive(clap::Subcommand, Clone, PartialEq, Debug)]
pub enum RuleCommand {
    /// Delete rules by their ids.
    Delete {
        /// As ctl-fw -L shows them.
        #[arg(value_name = "ID", required = true)]
        ids: Vec<u64>,
    },
    /// Move a rule to another position of its chain and namespace.
    Move {
        /// The rule.
        id: u64,
        /// Where it is then, 0 first.
        position: usize,
    },
    /// Put another rule in the place of one. It keeps id and counters.
    #[command(override_usage = "ctl-fw rule replace ID -c CHAIN -v VERDICT [-n NAMESPACE] [[!] MATCH]...")]
    Replace {
        /// The rule that was.
        id: u64,
        /// The rule that is to be.
        #[command(flatten)]
        rule: Box<RuleArgs>,
    },
}

impl RuleCommand {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        match self {
            RuleCommand::Delete { ids } => delete(ids, session),
            RuleCommand::Move { id, position } => {
                let changed = session.change(vec![Edit::Move { id: *id, position: *position }])?;
                show_rule("moved", changed, session)
            }
            RuleCommand::Replace { id, rule } => {
                let rule = made(rule, session)?;
                let changed = session.change(vec![Edit::Replace { id: *id, rule }])?;
                show_rule("replaced", changed, session)
            }
        }
    }
}

/// The rule that was typed; what is to be known of it is said.
fn made(args: &RuleArgs, session: &mut Session<'_, '_>) -> Result<shared::Rule, Trouble> {
    let made = lookup::rule(args, &mut session.progress())?;
    for note in &made.notes {
        session.say(&format!("note: {note}"));
    }
    Ok(made.rule)
}

/// `-A`, `-I`.
pub(super) fn add(args: &RuleArgs, position: Option<usize>, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    let rule = made(args, session)?;
    let changed = session.change(vec![Edit::Add { rule, position }])?;
    show_rule("added", changed, session)
}

/// Says what became of a rule.
fn show_rule(what: &str, changed: Changed, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    let mut done = changed.done.into_iter();
    let (Some(Done::Rule(rule)), None) = (done.next(), done.next()) else { return Err(Trouble::OtherAnswer) };
    let style = session.style;
    if style.json {
        session.json(&*rule)?;
    } else {
        let ListedRule { id, position, rule, .. } = &*rule;
        let (chain, namespace) = (rule.chain, listing::namespace(&rule.namespace, style));
        let consequence = listing::consequence(rule, style);
        writeln!(session.out(), "{what} rule {id} at position {position} of {chain}, {namespace}: {consequence}")?;
    }
    if rule.dormant {
        session.say(&format!("note: {} does not exist now; the rule is dormant", rule.rule.namespace));
    }
    Ok(Exit::Done)
}

/// `-D N`.
pub(super) fn delete_at(
    chain: Chain,
    namespace: Option<&Selector>,
    position: usize,
    session: &mut Session<'_, '_>,
) -> Result<Exit, Trouble> {
    let namespace = or_own(namespace)?;
    let changed = session.change(vec![Edit::DeleteAt { chain, namespace, position }])?;
    show_deleted(&changed, session)
}

/// `-D --id ID`, `rule delete`.
pub(super) fn delete(ids: &[u64], session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    // One that is named twice is deleted once.
    let new = |(index, id): &(usize, &u64)| !ids[..*index].contains(id);
    let edits = ids.iter().enumerate().filter(new).map(|(_, id)| Edit::Delete { id: *id });
    let changed = session.change(edits.collect())?;
    show_deleted(&changed, session)
}

/// `-F`.
pub(super) fn flush(
    chain: Option<Chain>,
    namespace: Option<&Selector>,
    session: &mut Session<'_, '_>,
) -> Result<Exit, Trouble> {
    let namespace = or_own(namespace)?;
    let changed = session.change(vec![Edit::Flush { chain, namespace }])?;
    show_deleted(&changed, session)
}

fn show_deleted(changed: &Changed, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
    let mut deleted = 0;
    for done in &changed.done {
        let Done::Deleted(count) = done else { return Err(Trouble::OtherAnswer) };
        deleted += count;
    }
    if session.style.json {
        return session.json(&serde_json::json!({ "deleted": deleted }));
    }
    writeln!(session.out(), "deleted {}", count(deleted, "rule"))?;
    Ok(Exit::Done)
}

/// `-P`.
pub(super) fn policy(
    chain: Chain,
    namespace: Option<&Selector>,
    verdict: Verdict,
    session: &mut Session<'_, '_>,
) -> Result<Exit, Trouble> {
    let namespace = or_own(namespace)?;
    let changed = session.change(vec![Edit::Policy { chain, namespace, verdict }])?;
    let [Done::PolicySet] = changed.done.as_slice() else { return Err(Trouble::OtherAnswer) };
    if session.style.json {
        return session.json(&serde_json::json!({ "chain": chain, "policy": verdict }));
    }
    writeln!(session.out(), "the policy of {chain} is now {verdict}")?;
    Ok(Exit::Done)
}

/// `-L`.
pub(super) fn list(
    chain: Option<Chain>,
    namespace: Option<&Selector>,
    session: &mut Session<'_, '_>,
) -> Result<Exit, Trouble> {
    let namespace = namespace.map(namespace::absolute).transpose()?;
    let Answer::Listing(answer) = session.ask(&Request::List { chain, namespace })? else {
        return Err(Trouble::OtherAnswer);
    };
    let style = session.style;
    listing::write(session.out(), &answer, style)?;
    Ok(Exit::Done)
}

/// Namespaces are made absolute here, where relative names and `self` still mean something.
fn or_own(namespace: Option<&Selector>) -> Result<Selector, Trouble> {
    Ok(match namespace {
        Some(selector) => namespace::absolute(selector)?,
        None => namespace::own()?,
    })
}
