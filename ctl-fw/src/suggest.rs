//! The right word beside a wrong one.

use std::fmt;
use std::str::FromStr;

use shared::set::SetKind;
use shared::{Chain, Verdict};

/// How alike two words must be (Jaro, 0 to 1), as clap has it for options.
const ALIKE: f64 = 0.7;

/// `error` about `text`, and if one of `words` is like it, that.
pub(crate) fn beside<T: fmt::Display>(error: String, text: &str, words: impl IntoIterator<Item = T>) -> String {
    let lower = text.to_lowercase();
    let likeness = |word: &String| strsim::jaro(&lower, &word.to_lowercase());
    let words = words.into_iter().map(|word| word.to_string());
    let best = words.map(|word| (likeness(&word), word)).max_by(|(a, _), (b, _)| a.total_cmp(b));
    match best {
        Some((likeness, word)) if likeness > ALIKE => format!("{error}; did you mean {word}?"),
        _ => error,
    }
}

fn read<T: FromStr<Err: fmt::Display>, W: fmt::Display>(text: &str, words: &[W]) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| beside(error.to_string(), text, words))
}

/// Reads a chain.
pub(crate) fn chain(text: &str) -> Result<Chain, String> {
    read(text, &Chain::ALL)
}

/// Reads a verdict.
pub(crate) fn verdict(text: &str) -> Result<Verdict, String> {
    read(text, &[Verdict::Accept, Verdict::Drop, Verdict::Reject])
}

/// Reads a kind of sets.
pub(crate) fn set_kind(text: &str) -> Result<SetKind, String> {
    read(text, &SetKind::ALL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_meant_is_said() {
        for (found, wanted) in [
            (chain("OUTPT").unwrap_err(), "did you mean OUTPUT?"),
            (verdict("accpet").unwrap_err(), "did you mean ACCEPT?"),
            (verdict("deny").unwrap_err(), "ACCEPT, DROP, REJECT"),
            (set_kind("address").unwrap_err(), "did you mean addresses?"),
        ] {
            assert!(found.ends_with(wanted), "{found}");
        }
        assert!(!chain("SIDEWAYS").unwrap_err().contains("mean"));
    }
}
