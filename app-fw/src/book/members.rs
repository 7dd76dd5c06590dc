//! Elements of sets, put in, taken out and compared.

use std::cmp::Ordering;
use std::fmt;

use shared::set::Elements;

/// Runs `$body` with the lists of two sets of the same kind.
macro_rules! both {
    ($one:expr, $other:expr, |$a:ident, $b:ident| $body:expr, $otherwise:expr) => {
        match ($one, $other) {
            (Elements::Addresses($a), Elements::Addresses($b)) => $body,
            (Elements::Ports($a), Elements::Ports($b)) => $body,
            (Elements::Digests($a), Elements::Digests($b)) => $body,
            _ => $otherwise,
        }
    };
}

/// Puts in what is not there yet. Both are of one kind.
pub(super) fn add(elements: &mut Elements, more: Elements) {
    fn join<T: Ord>(elements: &mut Vec<T>, more: Vec<T>) {
        match <[T; 1]>::try_from(more) {
            Ok([one]) => {
                if let Err(at) = elements.binary_search(&one) {
                    elements.insert(at, one);
                }
            }
            Err(more) => {
                elements.extend(more);
                // Two runs in order: a merge.
                elements.sort();
                elements.dedup();
            }
        }
    }
    both!(elements, more, |a, b| join(a, b), {});
}

/// Takes out. The text of an element that is not there, if there is one; then the rest may be gone.
pub(super) fn remove(elements: &mut Elements, these: &Elements) -> Result<(), String> {
    fn cut<T: Ord + fmt::Display>(elements: &mut Vec<T>, these: &[T]) -> Result<(), String> {
        if let Some(absent) = these.iter().find(|one| elements.binary_search(one).is_err()) {
            return Err(absent.to_string());
        }
        elements.retain(|one| these.binary_search(one).is_err());
        Ok(())
    }
    both!(elements, these, |a, b| cut(a, b), Ok(()))
}

/// Texts of the elements that are in one only, and of those that are in the other only.
pub fn difference(one: &Elements, other: &Elements) -> (Vec<String>, Vec<String>) {
    fn compare<T: Ord + fmt::Display>(one: &[T], other: &[T]) -> (Vec<String>, Vec<String>) {
        let (mut only_one, mut only_other) = (Vec::new(), Vec::new());
        let (mut a, mut b) = (one.iter().peekable(), other.iter().peekable());
        loop {
            let order = match (a.peek(), b.peek()) {
                (Some(a), Some(b)) => a.cmp(b),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (None, None) => return (only_one, only_other),
            };
            if order != Ordering::Greater {
                let next = a.next().map(T::to_string);
                only_one.extend(next.filter(|_| order == Ordering::Less));
            }
            if order != Ordering::Less {
                let next = b.next().map(T::to_string);
                only_other.extend(next.filter(|_| order == Ordering::Greater));
            }
        }
    }
    both!(one, other, |a, b| compare(a, b), (one.texts(), other.texts()))
}

/// Texts of all elements; of none if there is no set.
pub fn texts(elements: Option<&Elements>) -> Vec<String> {
    elements.map_or_else(Vec::new, Elements::texts)
}
