//! Namespaces that a client named by a file become such as survive.

use shared::control::{Edit, Failure};
use shared::document::Document;
use shared::rule::Item;
use shared::{Match, Rule, Selector};

use crate::namespaces::Namespaces;

use super::invalid;

/// Those of an edit.
pub(super) fn edit(edit: &mut Edit, namespaces: &Namespaces) -> Result<(), Failure> {
    match edit {
        Edit::Add { rule: of, .. } | Edit::Replace { rule: of, .. } => rule(of, namespaces),
        Edit::DeleteAt { namespace, .. } | Edit::Flush { namespace, .. } | Edit::Policy { namespace, .. } => {
            selector(namespace, namespaces)
        }
        _ => Ok(()),
    }
}

/// Those of a document.
pub(super) fn document(document: &mut Document, namespaces: &Namespaces) -> Result<(), Failure> {
    document.policies.iter_mut().try_for_each(|policy| selector(&mut policy.namespace, namespaces))?;
    document.rules.iter_mut().enumerate().try_for_each(|(index, numbered)| {
        rule(&mut numbered.rule, namespaces).map_err(|failure| Failure { index: Some(index), ..failure })
    })
}

/// One.
pub(super) fn selector(selector: &mut Selector, namespaces: &Namespaces) -> Result<(), Failure> {
    if matches!(selector, Selector::File(_)) {
        let resolved = namespaces.resolve(selector.clone());
        *selector = resolved.map_err(|error| invalid(error.to_string()))?;
    }
    Ok(())
}

fn rule(rule: &mut Rule, namespaces: &Namespaces) -> Result<(), Failure> {
    selector(&mut rule.namespace, namespaces)?;
    for predicate in &mut rule.predicates {
        let Match::Netns(list) = &mut predicate.on else { continue };
        for item in &mut list.0 {
            if let Item::One(one) = item {
                selector(one, namespaces)?;
            }
        }
    }
    Ok(())
}
