//! app-fw-rules(5): the text form of rules, from the table of match options.

use std::io::{self, Write};

use super::roff::{self, Block};
use super::text;
use crate::rule_options::{Kind, OPTIONS};

pub(super) fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let source = format!("app\\-fw {}", env!("CARGO_PKG_VERSION"));
    writeln!(page, ".ie \\n(.g .ds Aq \\(aq\n.el .ds Aq '")?;
    writeln!(page, ".TH app\\-fw\\-rules 5 \"\" \"{source}\" \"File Formats\"")?;
    roff::section(&mut page, "NAME", &[])?;
    writeln!(page, "app\\-fw\\-rules \\- the text form of rules of app\\-fw")?;
    for (title, blocks) in text::RULES_BEFORE {
        roff::section(&mut page, title, blocks)?;
    }
    roff::section(&mut page, "MATCHES", &[Block::Text(text::MATCHES)])?;
    options(&mut page, |kind| kind == Kind::Match)?;
    roff::section(&mut page, "MATCHES OF THE COMMAND LINE", &[Block::Text(text::LOOKUPS)])?;
    options(&mut page, |kind| matches!(kind, Kind::Lookup(_)))?;
    for (title, blocks) in text::RULES_AFTER {
        roff::section(&mut page, title, blocks)?;
    }
    Ok(page)
}

fn options(page: &mut Vec<u8>, wanted: impl Fn(Kind) -> bool) -> io::Result<()> {
    for option in OPTIONS.iter().filter(|option| wanted(option.kind)) {
        let value = option.value.map(|value| format!(" {value}")).unwrap_or_default();
        let help = format!("{}\n\nExample: {}", option.help, option.example);
        roff::blocks(page, &[Block::Item(&format!("{}{value}", option.name()), &help)])?;
    }
    Ok(())
}
