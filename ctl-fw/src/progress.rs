//! Work that takes long shows a person at a terminal that it goes on.

use std::io::Write;
use std::time::{Duration, Instant};

/// Nobody is bothered before.
const SILENCE: Duration = Duration::from_millis(500);
/// Between two looks at it.
const PERIOD: Duration = Duration::from_millis(100);
/// Characters of a line that fits every terminal.
const LONGEST: usize = 76;

pub(crate) struct Progress<'a> {
    /// The terminal, if there is one.
    terminal: Option<&'a mut dyn Write>,
    next: Instant,
    shown: bool,
}

impl<'a> Progress<'a> {
    pub(crate) fn new(terminal: Option<&'a mut dyn Write>) -> Progress<'a> {
        Progress { terminal, next: Instant::now() + SILENCE, shown: false }
    }

    /// Nobody looks.
    #[cfg(test)]
    pub(crate) fn none() -> Progress<'static> {
        Progress::new(None)
    }

    /// Shows what is done at the moment, if it is time to. What cannot be shown is no trouble.
    pub(crate) fn tick(&mut self, what: impl FnOnce() -> String) {
        let Some(terminal) = &mut self.terminal else { return };
        let now = Instant::now();
        if now < self.next {
            return;
        }
        let text: String = crate::style::plain(&what()).chars().take(LONGEST).collect();
        // Back to the start of the line, and clear it.
        let _ = write!(terminal, "\r\x1b[K{text}").and_then(|()| terminal.flush());
        (self.next, self.shown) = (now + PERIOD, true);
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let (Some(terminal), true) = (&mut self.terminal, self.shown) {
            let _ = write!(terminal, "\r\x1b[K").and_then(|()| terminal.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_work_is_silent_and_long_work_leaves_nothing() {
        let mut terminal = Vec::new();
        Progress::new(Some(&mut terminal)).tick(|| "at once".into());
        assert!(terminal.is_empty());
        let mut progress = Progress::new(Some(&mut terminal));
        progress.next = Instant::now();
        progress.tick(|| "a\nb".into());
        progress.tick(|| "too soon".into());
        drop(progress);
        assert_eq!(terminal, b"\r\x1b[Ka\\nb\r\x1b[K");
    }
}
