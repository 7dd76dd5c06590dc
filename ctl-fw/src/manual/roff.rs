//! A little of man(7).

use std::io::{self, Write};

/// A piece of a section.
#[derive(Clone, Copy, Debug)]
pub enum Block<'a> {
    /// Paragraphs, with empty lines between.
    Text(&'a str),
    /// A term, and what it means.
    Item(&'a str, &'a str),
    /// Lines as they are.
    Code(&'a str),
}

/// Text that means itself.
pub(super) fn escape(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

/// Lines of text: what begins with a dot or a quote is no request.
fn lines(text: &str) -> String {
    let line = |line: &str| {
        let line = escape(line.trim_end());
        if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

pub(super) fn blocks(out: &mut dyn Write, blocks: &[Block<'_>]) -> io::Result<()> {
    for block in blocks {
        match block {
            Block::Text(text) => {
                for paragraph in text.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
                    writeln!(out, ".PP\n{}", lines(paragraph.trim()))?;
                }
            }
            Block::Item(term, text) => {
                let paragraphs: Vec<_> = text.split("\n\n").map(|paragraph| lines(paragraph.trim())).collect();
                writeln!(out, ".TP\n\\fB{}\\fR\n{}", lines(term), paragraphs.join("\n.IP\n"))?;
            }
            Block::Code(text) => writeln!(out, ".PP\n.RS 4\n.nf\n{}\n.fi\n.RE", lines(text.trim_end()))?,
        }
    }
    Ok(())
}

pub(super) fn section(out: &mut dyn Write, title: &str, content: &[Block<'_>]) -> io::Result<()> {
    writeln!(out, ".SH \"{title}\"")?;
    blocks(out, content)
}
