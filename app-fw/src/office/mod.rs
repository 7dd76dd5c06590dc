//! What clients of the control socket can have done: changes of the rules, listings, the status.

mod compiler;
mod listing;
mod registrar;
mod resolve;
mod status;
#[cfg(test)]
mod tests;
mod timekeeper;
mod windows;

use std::sync::Arc;

use shared::control::{Answer, Failure, FailureKind, Request};

use crate::control::{Caller, Handler, Hub, Subscription};
use crate::explain::{Explainer, Wanted};
use crate::learn::Records;

pub use registrar::Registrar;
pub use status::{Post, Premises, ProbeReport};
pub use timekeeper::keep_time;

/// Answers requests.
pub struct Office {
    /// The rules.
    pub registrar: Arc<Registrar>,
    /// Everything else the status tells of.
    pub premises: Premises,
    /// Who is told of changes.
    pub hub: Arc<Hub>,
    /// Tells why packets get their verdicts.
    pub explainer: Explainer,
    /// What `--audit` recorded.
    pub records: Option<Arc<Records>>,
}

impl Handler for Office {
    fn handle(&self, caller: Caller, request: Request) -> Answer {
        self.answer(caller, request).unwrap_or_else(Answer::Error)
    }

    fn subscribe(&self, changes: bool, packets: bool) -> Subscription {
        self.hub.subscribe(changes, packets)
    }
}

impl Office {
    fn answer(&self, caller: Caller, request: Request) -> Result<Answer, Failure> {
        let registrar = &self.registrar;
        match request {
            Request::Change { edits, note, expected } => {
                registrar.change(caller, edits, note, expected).map(Answer::Changed)
            }
            Request::Restore { document, note, expected } => {
                registrar.restore(caller, document, note, expected).map(Answer::Changed)
            }
            Request::Undo { to } => registrar.undo(caller, to).map(Answer::Changed),
            Request::List { chain, namespace } => registrar.list(chain, namespace).map(Answer::Listing),
            Request::History { count } => registrar.history(count).map(Answer::History),
            Request::Status => Ok(Answer::Status(Box::new(self.premises.status(&registrar.rules())))),
            Request::Explain { subject, chain, flow, namespace } => {
                let wanted = Wanted { subject, chain, flow, namespace };
                self.explainer.explain(wanted).map(|explanation| Answer::Explanation(Box::new(explanation)))
            }
            Request::Learned { clear } => match &self.records {
                Some(records) => Ok(Answer::Learned(records.list(clear))),
                None => Err(invalid("nothing is recorded: app-fw was started without --audit".into())),
            },
            // The server asks `subscribe` itself.
            Request::Subscribe { .. } => Ok(Answer::Subscribed),
        }
    }
}

fn invalid(message: String) -> Failure {
    Failure { kind: FailureKind::Invalid, message, index: None }
}
