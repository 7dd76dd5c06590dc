//! `!` and `-!` before a match option.
//!
//! clap knows no option that changes the next one. So the negation is moved into the value, `! --dport 80` becomes
//! `--dport !80`, before clap reads the words; no value of a match option starts with `!` by itself. An option that takes
//! no value becomes its hidden opposite: `! --traced` becomes `--not-traced`.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::rule_options::{OPTIONS, RuleOption};

/// The match option that `name`, without dashes, is.
fn option_named(name: &[u8]) -> Option<&'static RuleOption> {
    OPTIONS.iter().find(|option| option.can_be_negated() && option.long.as_bytes() == name)
}

/// Whether `letter` is a match option, or the one other that can be negated: `! -n NAMESPACE`.
fn is_option(letter: u8) -> bool {
    letter == b'n' || OPTIONS.iter().any(|option| option.short.is_some_and(|short| short as u32 == u32::from(letter)))
}

/// `-n` with all its letters.
const NAMESPACE: &[u8] = b"namespace";

/// A negation of nothing that can be negated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NegationError {
    #[error("nothing follows the negation")]
    Nothing,
    #[error("negated twice")]
    Twice,
    #[error("{0:?} cannot be negated: the negation stands before a match option such as -d or --exe, or before -n")]
    Cannot(OsString),
}

/// Moves negations into the values of the options that follow them. The first word is the program's name.
pub(crate) fn into_values(words: impl IntoIterator<Item = OsString>) -> Result<Vec<OsString>, NegationError> {
    let mut words = words.into_iter();
    let mut moved: Vec<_> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        let option = match word.as_bytes() {
            b"--" => {
                moved.push(word);
                moved.extend(words);
                break;
            }
            b"!" | b"-!" => words.next().ok_or(NegationError::Nothing)?,
            // As getopt has it, where -! is an option without a value: -!d 192.0.2.1
            [b'-', b'!', rest @ ..] => OsString::from_vec([b"-", rest].concat()),
            _ => {
                moved.push(word);
                continue;
            }
        };
        match negated(&option)? {
            Negated::Whole(word) => moved.push(word),
            Negated::ValueFollows => {
                moved.push(option);
                match words.next() {
                    // Another option: clap will miss the value and say so.
                    Some(next) if next.as_bytes().starts_with(b"-") => moved.push(next),
                    Some(value) => moved.push(with_mark(b"", value.as_bytes())),
                    None => {}
                }
            }
        }
    }
    Ok(moved)
}

enum Negated {
    /// All in one word.
    Whole(OsString),
    /// The value is the next word.
    ValueFollows,
}

fn negated(option: &OsString) -> Result<Negated, NegationError> {
    let bytes = option.as_bytes();
    match bytes {
        b"!" | [b'-', b'!', ..] => return Err(NegationError::Twice),
        [b'-', b'-', name @ ..] => {
            let end = name.iter().position(|&byte| byte == b'=').unwrap_or(name.len());
            let (name, value) = (&name[..end], name[end..].strip_prefix(b"="));
            let flag = option_named(name).filter(|option| option.value.is_none());
            match (flag, value) {
                (Some(flag), None) => return Ok(Negated::Whole(format!("--{}", flag.opposite()).into())),
                (Some(_), Some(_)) => {}
                (None, value) if name == NAMESPACE || option_named(name).is_some() => {
                    return Ok(match value {
                        Some(value) => Negated::Whole(with_mark(&bytes[..2 + end + 1], value)),
                        None => Negated::ValueFollows,
                    });
                }
                (None, _) => {}
            }
        }
        [b'-', letter, rest @ ..] if is_option(*letter) => {
            return Ok(match rest {
                [] => Negated::ValueFollows,
                rest => Negated::Whole(with_mark(&bytes[..2], rest.strip_prefix(b"=").unwrap_or(rest))),
            });
        }
        _ => {}
    }
    Err(NegationError::Cannot(option.clone()))
}

fn with_mark(before: &[u8], value: &[u8]) -> OsString {
    OsString::from_vec([before, b"!", value].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(words: &str) -> Result<String, NegationError> {
        let words = std::iter::once("ctl-fw").chain(words.split_whitespace()).map(OsString::from);
        let moved = into_values(words)?;
        Ok(moved[1..].iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn negations_move_into_values() {
        for (from, to) in [
            ("-A -d 1.2.3.4 -v DROP", "-A -d 1.2.3.4 -v DROP"),
            ("-A ! -d 1.2.3.4 -v DROP", "-A -d !1.2.3.4 -v DROP"),
            ("-A -! -d 1.2.3.4 -v DROP", "-A -d !1.2.3.4 -v DROP"),
            ("-!d 1.2.3.4", "-d !1.2.3.4"),
            ("! -d1.2.3.4 -! -s=::/0", "-d!1.2.3.4 -s!::/0"),
            ("! --sport=80 -! --dport 81 -p tcp", "--sport=!80 --dport !81 -p tcp"),
            ("-! --sng-hash aa -! --agg-hash=bb", "--sng-hash !aa --agg-hash=!bb"),
            ("! --anon-exec -! --traced --dport 80", "--not-anon-exec --not-traced --dport 80"),
            ("--anon-exec --traced", "--anon-exec --traced"),
            ("! --exe /bin/sh ! -n host -! --namespace=x", "--exe !/bin/sh -n !host --namespace=!x"),
            ("! -i eth0 ! -olo", "-i !eth0 -o!lo"),
            ("! --dport", "--dport"),
            ("! --dport -c OUTPUT", "--dport -c OUTPUT"),
            ("-H a -- ! b", "-H a -- ! b"),
        ] {
            assert_eq!(moved(from).as_deref(), Ok(to), "{from}");
        }
    }

    #[test]
    fn what_cannot_be_negated_is_named() {
        assert_eq!(moved("-A !"), Err(NegationError::Nothing));
        assert_eq!(moved("-!"), Err(NegationError::Nothing));
        assert_eq!(moved("! -! -d 1.2.3.4"), Err(NegationError::Twice));
        assert_eq!(moved("-! ! -d 1.2.3.4"), Err(NegationError::Twice));
        assert_eq!(moved("-!!"), Err(NegationError::Twice));
        for word in
            ["-v", "-c", "-A", "-Ad", "--json", "--sports", "--sport-x=1", "--traced=1", "--from", "1.2.3.4", "-", "--"]
        {
            assert_eq!(moved(&format!("! {word} x")), Err(NegationError::Cannot(word.into())), "{word}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_pass() {
        let odd = OsString::from_vec(vec![b'-', b'd', 0xff]);
        let moved = into_values(["ctl-fw".into(), "!".into(), odd]).unwrap();
        assert_eq!(moved[1].as_bytes(), b"-d!\xff");
        assert_eq!(into_values([]), Ok(vec![]));
    }
}
