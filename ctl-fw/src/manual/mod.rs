//! Manual pages and completion scripts, from the definitions that the programs read their arguments by.

mod roff;
mod rules_page;
mod text;

use std::io::{self, Write};
use std::path::Path;

use clap_complete::Shell;
use clap_mangen::Man;

pub use roff::Block;

/// A section of a page that is written by hand.
pub type Section<'a> = (&'a str, &'a [Block<'a>]);

/// Shells for which there are completions.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

/// The completion script of a program for a shell.
pub fn completions(command: &clap::Command, shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    let mut command = visible(command);
    let name = command.get_name().to_owned();
    clap_complete::generate(shell, &mut command, &name, &mut script);
    if shell != Shell::Bash {
        return script;
    }
    // It calls a subcommand one way where it finds it and another where it looks it up, if the program has a dash in its name.
    let (found, looked_up) = (name.replace('-', "__"), name.replace('-', "__subcmd__"));
    String::from_utf8_lossy(&script).replace(&looked_up, &found).into_bytes()
}

/// The definition without what is hidden, which completions would offer.
fn visible(command: &clap::Command) -> clap::Command {
    let mut seen = clap::Command::new(command.get_name().to_owned()).disable_help_subcommand(true);
    if let Some(about) = command.get_about() {
        seen = seen.about(about.clone());
    }
    seen.args(command.get_arguments().filter(|argument| !argument.is_hide_set()).cloned())
        .subcommands(command.get_subcommands().filter(|command| !command.is_hide_set()).map(visible))
}

/// app-fw(8), of the daemon's own definition.
///
/// # Errors
/// None: it is written to memory.
pub fn app_fw(command: &clap::Command) -> io::Result<Vec<u8>> {
    page(command, text::APP_FW)
}

/// ctl-fw(8).
///
/// # Errors
/// None: it is written to memory.
pub fn ctl_fw() -> io::Result<Vec<u8>> {
    page(&crate::args::command(), text::CTL_FW)
}

/// app-fw-rules(5).
///
/// # Errors
/// None: it is written to memory.
pub fn rules() -> io::Result<Vec<u8>> {
    rules_page::page()
}

/// Writes pages and completions that are of this crate's making into a directory.
///
/// # Errors
/// What the system says.
pub fn write(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("ctl-fw.8"), ctl_fw()?)?;
    std::fs::write(dir.join("app-fw-rules.5"), rules()?)?;
    write_completions(&crate::args::command(), dir)
}

/// Writes app-fw(8) and the daemon's completions, of its own definition, into a directory.
///
/// # Errors
/// What the system says.
pub fn write_app_fw(command: &clap::Command, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    std::fs::write(dir.join("app-fw.8"), app_fw(command)?)?;
    write_completions(command, dir)
}

fn write_completions(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for shell in SHELLS {
        let file = clap_complete::Generator::file_name(&shell, command.get_name());
        std::fs::write(dir.join(file), completions(command, shell))?;
    }
    Ok(())
}

/// A page: what the definition says, every subcommand with its options, and the sections.
fn page(command: &clap::Command, sections: &[Section<'_>]) -> io::Result<Vec<u8>> {
    // What is in there is said in sections of its own.
    let mut command = command.clone().after_help("").disable_help_subcommand(true);
    command.build();
    let man = Man::new(command.clone())
        .section("8")
        .date("")
        .source(format!("app-fw {}", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        writeln!(page, ".SH COMMANDS")?;
        subcommands(&command, &mut page)?;
    }
    for (title, blocks) in sections {
        roff::section(&mut page, title, blocks)?;
    }
    Ok(page)
}

/// Each subcommand, and those below it, with its options.
fn subcommands(command: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    for command in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let mut command = command.clone();
        let usage = command.render_usage().to_string();
        let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).trim();
        writeln!(page, ".SS \"{}\"", roff::escape(usage.lines().next().unwrap_or_default()).replace('"', "'"))?;
        let about = command.get_long_about().or_else(|| command.get_about()).map(ToString::to_string);
        roff::blocks(page, &[Block::Text(about.as_deref().unwrap_or_default())])?;
        let own: Vec<_> = command
            .get_arguments()
            .filter(|argument| {
                // Those of a rule are told once, above.
                let of_rule = argument
                    .get_help_heading()
                    .is_some_and(|heading| heading.starts_with("Matches") || heading == "Rule");
                !argument.is_hide_set() && !argument.is_global_set() && !of_rule
            })
            .filter(|argument| !matches!(argument.get_id().as_str(), "help" | "version"))
            .collect();
        for argument in own {
            let help = argument.get_long_help().or_else(|| argument.get_help()).map(ToString::to_string);
            let default: Vec<_> = argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            let default = if default.is_empty() { String::new() } else { format!(" [default: {}]", default.join(" ")) };
            let help = format!("{}{default}", help.unwrap_or_default());
            roff::blocks(page, &[Block::Item(&argument.to_string(), &help)])?;
        }
        subcommands(&command, page)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
