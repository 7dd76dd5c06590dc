//! Ranks: where a rule stands among those of its place, so that one can be put between two others without touching them.

use std::ops::{Range, RangeInclusive};
use std::sync::Arc;

use super::{Changing, Entry, Place};

/// From one rule to the next, when there is room.
pub(super) const GAP: i64 = 1 << 32;

/// Sums and differences of two ranks never overflow.
pub(super) const POSSIBLE: RangeInclusive<i64> = -(1 << 61)..=1 << 61;

/// Rules that give way at first when there is no room between two.
const NEIGHBOURS: usize = 16;

/// The room that each of them has then, at least.
const ELBOW_ROOM: i64 = 1 << 12;

impl Changing<'_> {
    /// A rank for a rule that is to stand at `position`, which is not beyond the end. Neighbours may get new ones.
    pub(super) fn rank_at(&mut self, place: &Place, position: usize) -> i64 {
        if let Some(rank) = between(self.book().list(place), position) {
            return rank;
        }
        self.make_room(place, position);
        // Room was made; if not, ranks are beyond all bounds, which makes room for all.
        between(self.book().list(place), position).unwrap_or_default()
    }

    fn make_room(&mut self, place: &Place, position: usize) {
        let list = self.book().list(place);
        let mut reach = NEIGHBOURS;
        let (range, first, step) = loop {
            let range = position.saturating_sub(reach)..(position + reach).min(list.len());
            if range == (0..list.len()) {
                break (range, 0, GAP);
            }
            if let Some((first, step)) = spread(list, &range) {
                break (range, first, step);
            }
            reach *= 2;
        };
        let moved: Vec<_> = (first..)
            .step_by(usize::try_from(step).unwrap_or(1))
            .zip(&list[range])
            .map(|(rank, entry)| Entry { id: entry.id, rank, rule: entry.rule.clone(), hits: entry.hits.clone() })
            .map(|entry| (entry.id, Some(Arc::new(entry))))
            .collect();
        self.put_all(moved.into_iter().collect());
    }
}

/// A rank between that of the rule before `position` and that of the rule there.
fn between(list: &[Arc<Entry>], position: usize) -> Option<i64> {
    let before = position.checked_sub(1).and_then(|at| list.get(at)).map(|entry| entry.rank);
    let after = list.get(position).map(|entry| entry.rank);
    let rank = match (before, after) {
        (None, None) => 0,
        (Some(before), None) => before + GAP,
        (None, Some(after)) => after - GAP,
        (Some(before), Some(after)) => Some(before + (after - before) / 2).filter(|rank| *rank > before)?,
    };
    POSSIBLE.contains(&rank).then_some(rank)
}

/// Where rules of `range` could stand evenly between their neighbours: the first rank and the distance.
fn spread(list: &[Arc<Entry>], range: &Range<usize>) -> Option<(i64, i64)> {
    let count = i64::try_from(range.len()).ok()?;
    let before = range.start.checked_sub(1).map(|at| list[at].rank);
    let after = list.get(range.end).map(|entry| entry.rank);
    let (first, step) = match (before, after) {
        (Some(before), Some(after)) => {
            let step = (after - before) / (count + 1);
            (before + step, step)
        }
        (Some(before), None) => (before + GAP, GAP),
        (None, Some(after)) => (after - count * GAP, GAP),
        (None, None) => return None,
    };
    let is_possible = POSSIBLE.contains(&first) && POSSIBLE.contains(&(first + (count - 1) * step));
    (is_possible && step >= ELBOW_ROOM).then_some((first, step))
}
