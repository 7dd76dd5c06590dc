//! The steps from one layout of the database to the next: numbered, forward only, each in one transaction.
//!
//! A step that has been released is never edited and uses no type of the current program, so that a database of any age
//! goes through the same steps. The number of steps taken is SQLite's `user_version`.

use rusqlite_migration::{M, Migrations};

const STEPS: &[M<'_>] = &[M::up(include_str!("v1.sql")), M::up(include_str!("v2.sql"))];

/// The layout this program knows.
pub(super) const LATEST: i64 = STEPS.len() as i64;

/// All steps.
pub(super) fn steps() -> Migrations<'static> {
    Migrations::from_slice(STEPS)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_steps_run() {
        super::steps().validate().unwrap();
    }
}
