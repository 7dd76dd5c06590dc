//! `import`: rules of other firewalls.

mod chains;
mod iptables;

use std::path::PathBuf;

use shared::control::Edit;
use shared::document::Document;
use shared::{Selector, rule::quoted};

use crate::rule_options::read_namespace;
use crate::ruleset::{read_file, shown};
use crate::session::Session;
use crate::style::{count, plain};
use crate::trouble::Trouble;
use crate::{Exit, namespace};

/// `import`.
#[derive(clap::Subcommand, Clone, PartialEq, Debug)]
pub enum ImportCommand {
    /// Take the filter table of iptables-save or ip6tables-save.
    ///
    /// Prints a ruleset that ctl-fw restore and check read, and on the standard error what could not be expressed, by line.
    Iptables(IptablesArgs),
}

/// `import iptables`.
#[derive(clap::Args, Clone, PartialEq, Debug)]
pub struct IptablesArgs {
    /// What iptables-save wrote; the standard input if absent or -.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// The network namespace of the rules.
    #[arg(short, long, default_value = "host", value_parser = read_namespace)]
    pub namespace: Selector,
    /// Add the rules to those in force, all in one change, instead of printing them.
    #[arg(long)]
    pub apply: bool,
    /// With --apply: add them though not all could be expressed.
    #[arg(long, requires = "apply")]
    pub partial: bool,
}

/// What became of a ruleset.
#[derive(Debug, Default)]
struct Imported {
    document: Document,
    /// What could not be expressed, by line.
    left_out: Vec<LeftOut>,
    /// Sentences.
    notes: Vec<String>,
}

/// A line that could not be expressed.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
struct LeftOut {
    line: usize,
    text: String,
    why: String,
}

impl ImportCommand {
    pub(crate) fn run(&self, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        let ImportCommand::Iptables(args) = self;
        let bytes = read_file(&args.file)?;
        let name = shown(&args.file);
        let text = String::from_utf8_lossy(&bytes);
        if !text.lines().any(|line| line.trim_end() == "*filter") {
            let name = name.display();
            return Err(Trouble::Other(format!("{name} has no filter table: is it what iptables-save wrote?")));
        }
        let imported = iptables::import(&text, &namespace::absolute(&args.namespace)?);
        if session.style.json && !args.apply {
            let Imported { document, left_out, notes } = imported;
            return session.json(&serde_json::json!({ "ruleset": document, "left_out": left_out, "notes": notes }));
        }
        for LeftOut { line, text, why } in &imported.left_out {
            session.say(&format!("{}:{line}: {why}: {}", name.display(), plain(text)));
        }
        for note in &imported.notes {
            session.say(&format!("note: {note}"));
        }
        if args.apply {
            return args.apply(imported, session);
        }
        writeln!(session.out(), "# Made by ctl-fw import iptables of {}", quoted(&plain(&name.to_string_lossy())))?;
        write!(session.out(), "{}", imported.document)?;
        Ok(Exit::Done)
    }
}

impl IptablesArgs {
    fn apply(&self, imported: Imported, session: &mut Session<'_, '_>) -> Result<Exit, Trouble> {
        if !imported.left_out.is_empty() && !self.partial {
            let left = count(imported.left_out.len(), "line");
            return Err(Trouble::Other(format!(
                "{left} could not be expressed, and rules mean something else without those before them: nothing was \
                 changed (--partial adds the rest)"
            )));
        }
        let Document { policies, rules, .. } = imported.document;
        let added = rules.len();
        let rules = rules.into_iter().map(|numbered| Edit::Add { rule: numbered.rule, position: None });
        let policies = policies.into_iter().map(|policy| Edit::Policy {
            chain: policy.chain,
            namespace: policy.namespace,
            verdict: policy.verdict,
        });
        let changed = session.change(rules.chain(policies).collect())?;
        if session.style.json {
            return session.json(&changed);
        }
        writeln!(session.out(), "revision {}: added {}", changed.revision, count(added, "rule"))?;
        Ok(Exit::Done)
    }
}
