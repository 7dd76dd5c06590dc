//! `--hook`: the netfilter rules that bring packets to the queues, and the programs that those rules run.
//!
//! ```text
//! place   what --hook says
//! rules   what has to be in the tables for it, as text
//! tables  iptables, which reads and writes them;  child  runs it
//! pins    the directory in which iptables finds the programs of the verdict cache
//! keeper  puts the rules in place, puts them back, takes them away;  changes  tells it when to look
//! ```
//!
//! Nobody else in the daemon knows of iptables. What happens here takes milliseconds to seconds, on the main thread before
//! the daemon is ready and when it ends, and on a thread of its own between.

mod changes;
mod child;
mod keeper;
mod pins;
mod place;
mod rules;
mod tables;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use keeper::{Board, Repin};
pub use pins::PinsError;
pub use place::Place;
pub use rules::Queues;
pub use tables::TablesError;

use keeper::{Keeper, Watch};
use pins::Pins;
use rules::Wanted;
use tables::Tables;

/// What is asked for on the command line.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where packets are taken from; none: the rules are made by hand.
    pub places: Vec<Place>,
    /// Where they go.
    pub queues: Queues,
    /// The iptables to use.
    pub iptables: Option<PathBuf>,
    /// Where the programs go.
    pub pins: Option<PathBuf>,
}

/// Why packets cannot be brought to the queues.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// The rules.
    #[error("--hook: {0}")]
    Tables(#[from] TablesError),
    /// The pins are another daemon's.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// A path that a rule would have to name.
    #[error("--pins {}: rules can only name paths of plain characters, 480 at most", .0.display())]
    Path(PathBuf),
    /// The system.
    #[error("--hook: {step}: {error}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// The rules and pins of one daemon.
pub struct Hooks {
    settings: Settings,
    tables: Vec<Tables>,
    /// Or why there are none.
    pins: Result<Pins, String>,
    board: Arc<Board>,
    watch: Option<Watch>,
}

impl Hooks {
    /// Finds what is needed, and pins the programs. No rule is changed yet. To be called when the queues are bound: that makes the
    /// rules of these queues this daemon's.
    ///
    /// `pin` fills a directory with programs; or why there are none.
    ///
    /// # Errors
    /// See [`HookError`]. It goes on without pins.
    pub fn prepare(
        settings: Settings,
        pin: Result<impl FnOnce(&Path) -> Result<(), String>, String>,
    ) -> Result<Hooks, HookError> {
        let board = Arc::new(Board::default());
        let mut tables = Vec::new();
        if !settings.places.is_empty() {
            let found = tables::find(settings.iptables.as_deref())?;
            for warning in found.warnings {
                tracing::warn!("{warning}");
                board.note(warning);
            }
            tables = found.tables;
        }
        let make = |pin| match Pins::make(settings.pins.as_deref(), *settings.queues.of[0].start(), pin) {
            Err(error @ PinsError::Taken(_)) => Err(HookError::from(error)),
            made => Ok(made.map_err(|error| error.to_string())),
        };
        let pins = match pin {
            Ok(pin) => make(pin)?,
            Err(why_not) => Err(why_not),
        };
        let directory = pins.as_ref().ok().map(Pins::directory);
        if let Some(directory) = directory.filter(|path| !settings.places.is_empty() && !rules::can_name(path)) {
            return Err(HookError::Path(directory.into()));
        }
        board.set_pins(directory);
        Ok(Hooks { settings, tables, pins, board, watch: None })
    }

    /// Where the programs are pinned, or why they are not.
    ///
    /// # Errors
    /// A sentence.
    pub fn pins(&self) -> Result<&Path, &str> {
        self.pins.as_ref().map(Pins::directory).map_err(String::as_str)
    }

    /// What the status is made from.
    pub fn board(&self) -> Arc<Board> {
        self.board.clone()
    }

    /// Puts the rules in place and keeps them there.
    ///
    /// # Errors
    /// See [`HookError`]. No rule stays then.
    pub fn place(&mut self, repin: Repin) -> Result<(), HookError> {
        if self.settings.places.is_empty() {
            return Ok(());
        }
        let wanted = Wanted {
            instance: *self.settings.queues.of[0].start(),
            places: Place::in_order(&self.settings.places),
            queues: self.settings.queues.clone(),
            programs: Default::default(),
        };
        let pins = self.pins().ok().map(Path::to_owned);
        // Before: what others change while the rules are put in place is heard of too.
        let watch = Watch::start(&self.tables)
            .map_err(|error| HookError::System { step: "starting to watch the rules", error })?;
        watch.keep(Keeper::place(wanted, self.tables.clone(), pins, repin, self.board.clone())?);
        self.watch = Some(watch);
        Ok(())
    }

    /// Takes the rules away again because the daemon does not start after all, unless one that crashed had left such rules.
    ///
    /// # Errors
    /// Rules are still there.
    pub fn back_out(self) -> Result<(), HookError> {
        match self.watch.and_then(Watch::stop) {
            Some(mut keeper) => Ok(keeper.back_out()?),
            None => Ok(()),
        }
    }

    /// Whether there are rules that would stay.
    pub fn are_in_place(&self) -> bool {
        self.watch.is_some()
    }

    /// Takes the rules away, and the pins if no rule of this namespace names them. Pins that rules made by hand may name stay.
    ///
    /// # Errors
    /// Rules are still there.
    pub fn remove(self) -> Result<(), HookError> {
        let Hooks { pins, watch, .. } = self;
        let Some(watch) = watch else { return Ok(()) };
        let panicked =
            || HookError::System { step: "removing the rules", error: io::Error::other("a thread panicked") };
        let mut keeper = watch.stop().ok_or_else(panicked)?;
        keeper.remove()?;
        if let Some(pins) = pins.ok().filter(|pins| !keeper.is_named(pins.directory())) {
            // They do no harm.
            pins.remove().unwrap_or_else(|error| tracing::warn!("pins of the verdict cache stay: {error}"));
        }
        Ok(())
    }
}
