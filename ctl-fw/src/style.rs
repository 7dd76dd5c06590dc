//! How answers look: for a person at a terminal, in a pipe, or as JSON.

use std::io::{self, Write};

use serde::Serialize;

/// How an answer is shown.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Style {
    /// As JSON.
    pub(crate) json: bool,
    /// On a terminal: what is too long to be read is shortened. Never in a pipe, where it is to be used.
    pub(crate) for_people: bool,
    /// With colours.
    pub(crate) colour: bool,
    /// Columns of the terminal; without one, lines are as long as they are.
    pub(crate) width: Option<usize>,
}

/// What a piece of text is, which says how it looks in colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    Heading,
    Good,
    Bad,
    Caution,
    Faint,
}

impl Tone {
    /// What to send a terminal (ECMA-48, SGR).
    fn code(self) -> Option<&'static str> {
        match self {
            Tone::Plain => None,
            Tone::Heading => Some("1"),
            Tone::Good => Some("32"),
            Tone::Bad => Some("31"),
            Tone::Caution => Some("33"),
            Tone::Faint => Some("2"),
        }
    }

    /// That of a verdict.
    pub(crate) fn of(verdict: shared::Verdict) -> Tone {
        match verdict {
            shared::Verdict::Accept => Tone::Good,
            shared::Verdict::Drop => Tone::Bad,
            shared::Verdict::Reject => Tone::Caution,
        }
    }
}

impl Style {
    /// `text` in its tone.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        match tone.code() {
            Some(code) if self.colour && !text.is_empty() => format!("\x1b[{code}m{text}\x1b[0m"),
            _ => text.into(),
        }
    }
}

/// Writes a value as JSON: readable for a person, else on one line.
pub(crate) fn json<T: Serialize + ?Sized>(out: &mut dyn Write, value: &T, style: Style) -> io::Result<()> {
    if style.for_people {
        serde_json::to_writer_pretty(&mut *out, value)?;
    } else {
        serde_json::to_writer(&mut *out, value)?;
    }
    writeln!(out)
}

/// A text that somebody else chose, on one line and without codes for the terminal.
pub(crate) fn plain(text: &str) -> String {
    if text.contains(char::is_control) { text.escape_debug().to_string() } else { text.into() }
}

/// `1 rule`, `2 rules`.
pub(crate) fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// One cell of a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Cell {
        Cell { text: text.into(), tone: Tone::Plain }
    }
}

impl Cell {
    pub(crate) fn toned(text: impl Into<String>, tone: Tone) -> Cell {
        Cell { text: text.into(), tone }
    }

    fn width(&self) -> usize {
        self.text.chars().count()
    }
}

/// Blanks between columns.
const GAP: usize = 2;
/// Where the last column would get fewer columns of a terminal, it stands below the others.
const LEAST: usize = 24;
/// How far it is indented then.
const BELOW: usize = 4;
/// No column is made narrower.
const NARROW: usize = 6;

/// Makes the widest columns narrower until all fit side by side.
fn squeeze(widths: &mut [usize], room: usize) {
    while widths.iter().map(|width| width + GAP).sum::<usize>() > room + GAP {
        match widths.iter_mut().filter(|width| **width > NARROW).max() {
            Some(widest) => *widest -= 1,
            None => return,
        }
    }
}

/// What of a text fits.
fn shortened(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.into();
    }
    text.chars().take(width.saturating_sub(1)).chain(['\u{2026}']).collect()
}

/// Writes rows below their headers, in columns as wide as their widest cell. `align` has `<` or `>` for each; the last column
/// is not filled up. On a terminal it goes on below itself where it is too long, or stands below the others where there is no
/// room beside them.
pub(crate) fn table<const N: usize>(
    out: &mut dyn Write,
    headers: [&str; N],
    rows: &[[Cell; N]],
    align: &str,
    style: Style,
) -> io::Result<()> {
    let mut widths = headers.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.width().max(*width);
        }
    }
    let beside: usize = widths[..N - 1].iter().map(|width| width + GAP).sum();
    let longest = widths[N - 1];
    let is_below = style.width.is_some_and(|width| N > 1 && beside + LEAST.min(longest) > width);
    if let (true, Some(width)) = (is_below, style.width) {
        squeeze(&mut widths[..N - 1], width);
    }
    let indent = if is_below { BELOW } else { beside };
    let room = style.width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(1));
    let headers = headers.map(|header| Cell::toned(header, Tone::Heading));
    for row in std::iter::once(&headers).chain(rows) {
        let mut line = String::new();
        for ((cell, width), side) in row[..N - 1].iter().zip(widths).zip(align.chars()) {
            let text = shortened(&cell.text, width);
            let fill = " ".repeat(width - text.chars().count());
            let text = style.paint(cell.tone, &text);
            line += &if side == '>' { format!("{fill}{text}") } else { format!("{text}{fill}") };
            line += &" ".repeat(GAP);
        }
        let last = &row[N - 1];
        if is_below {
            writeln!(out, "{}", std::mem::take(&mut line).trim_end())?;
            line = " ".repeat(indent);
        }
        let side = align.chars().last().unwrap_or('<');
        for (index, part) in wrap(&last.text, room).into_iter().enumerate() {
            let fill = if side == '>' && !is_below { widths[N - 1].saturating_sub(last.width()) } else { 0 };
            let start = if index == 0 { std::mem::take(&mut line) } else { " ".repeat(indent) };
            let text = format!("{start}{}{}", " ".repeat(fill), style.paint(last.tone, part));
            writeln!(out, "{}", text.trim_end())?;
        }
    }
    Ok(())
}

/// Lines of at most `room` characters, cut at blanks where there are some.
fn wrap(text: &str, room: usize) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((end, _)) = rest.char_indices().nth(room) {
        let cut = if rest[end..].starts_with(' ') { Some(end) } else { rest[..end].rfind(' ') };
        let cut = cut.filter(|&cut| cut > 0);
        let (line, after) = rest.split_at(cut.unwrap_or(end));
        lines.push(line);
        rest = after.trim_start_matches(' ');
    }
    if !rest.is_empty() || lines.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_table_fits_the_terminal() {
        let rows =
            [[Cell::from("1"), Cell::from("some words that are too long for it and a-word-that-is-longer-than-all")]];
        let style = Style { width: Some(30), ..Style::default() };
        let mut out = Vec::new();
        table(&mut out, ["N", "TEXT"], &rows, "><", style).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= 30), "{text}");
        assert_eq!(text.lines().nth(2), Some("   long for it and"), "{text}");
        let mut out = Vec::new();
        table(&mut out, ["N", "TEXT"], &rows, "><", Style::default()).unwrap();
        assert_eq!(String::from_utf8(out).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_table_fits_a_narrow_terminal() {
        let row = ["1", "netns:a-name-that-is-rather-long", "DROP", "-p tcp --dport 80 -d 192.0.2.0/24 --uid 1000"];
        for width in [30, 40, 60, 80] {
            let style = Style { width: Some(width), ..Style::default() };
            let mut out = Vec::new();
            table(&mut out, ["ID", "NAMESPACE", "V", "MATCH"], &[row.map(Cell::from)], "><<<", style).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}\n{text}");
            assert!(row[3].split(' ').all(|word| text.contains(word)), "{text}");
        }
    }

    #[test]
    fn colours_do_not_shift_columns() {
        let rows = [[Cell::toned("ACCEPT", Tone::Good), "x".into()], ["DROP".into(), "y".into()]];
        let (mut plain, mut coloured) = (Vec::new(), Vec::new());
        table(&mut plain, ["V", "T"], &rows, "<<", Style::default()).unwrap();
        table(&mut coloured, ["V", "T"], &rows, "<<", Style { colour: true, ..Style::default() }).unwrap();
        let coloured = String::from_utf8(coloured).unwrap();
        assert!(coloured.contains("\x1b[32mACCEPT\x1b[0m"));
        let stripped = ["\x1b[1m", "\x1b[32m", "\x1b[0m"].iter().fold(coloured, |text, code| text.replace(code, ""));
        assert_eq!(stripped, String::from_utf8(plain).unwrap());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_in_wrapping(text in "[a-zé ]{0,60}", room in 1..20usize) {
            let lines = wrap(&text, room);
            prop_assert!(lines.iter().all(|line| line.chars().count() <= room));
            let letters = |text: &str| text.replace(' ', "");
            prop_assert_eq!(letters(&lines.concat()), letters(&text));
        }
    }
}
