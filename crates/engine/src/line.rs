//! Who is next.
//!
//! Of those that wait, the one with the highest rank; of equals, the one whose turn it is. A rank is
//! a priority, raised by one level for every [`PATIENCE`] others of a higher one that were let pass:
//! so nobody waits for ever, whatever comes after.
//!
//! Turns are shared among scopes ([`Turns`]): who has many requests in line waits behind himself,
//! and not others behind him.

use std::collections::HashMap;

/// As many may pass before a priority counts as one higher.
pub(crate) const PATIENCE: u32 = 8;

/// A place in line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Higher goes first.
    pub(crate) priority: i8,
    /// When its scope is due, as [`Turns`] has it.
    pub(crate) turn: u64,
    /// Counts up with every request.
    pub(crate) number: u64,
    /// Others of a higher priority that went first although they came later.
    pub(crate) passed: u32,
}

impl Place {
    /// The smaller, the sooner.
    pub(crate) fn order(&self) -> (i64, u64, u64) {
        let rank = i64::from(self.priority) + i64::from(self.passed / PATIENCE);
        (-rank, self.turn, self.number)
    }

    /// The greater, the sooner it has to give way to another that already runs.
    pub(crate) fn yields(&self) -> (i8, u64) {
        (-self.priority.max(-i8::MAX), self.number)
    }
}

/// The index of the first in line.
pub(crate) fn first<T>(waiting: &[T], place: impl Fn(&T) -> &Place) -> Option<usize> {
    let order = |i: &usize| place(&waiting[*i]).order();
    (0..waiting.len()).min_by_key(order)
}

/// Somebody went: those of lower priority who came before were passed.
pub(crate) fn pass<'p>(waiting: impl IntoIterator<Item = &'p mut Place>, went: &Place) {
    for place in waiting {
        if place.number < went.number && place.priority < went.priority {
            place.passed = place.passed.saturating_add(1);
        }
    }
}

/// The turns of scopes, by start-time fair queueing (Goyal et al. 1996) with requests of equal
/// cost: a request's turn is the one after that of the request before it in its scope, but none
/// before the turn that it is now. So scopes with requests in line go in turns, and one that comes
/// anew goes with the next ones. Each priority has turns of its own.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    priorities: HashMap<i8, Clock>,
}

#[derive(Debug, Default)]
struct Clock {
    now: u64,
    /// The latest turn of each scope that has taken one which is not over.
    latest: HashMap<String, u64>,
    /// The latest turn of each scope that was used, and is not over.
    used: HashMap<String, u64>,
}

impl Turns {
    /// The turn of one more request.
    pub(crate) fn take(&mut self, scope: &str, priority: i8) -> u64 {
        let clock = self.priorities.entry(priority).or_default();
        let next = clock.latest.get(scope).map_or(0, |latest| latest + 1);
        let turn = next.max(clock.now);
        clock.latest.insert(scope.to_owned(), turn);
        turn
    }

    /// A request of a scope goes.
    pub(crate) fn went(&mut self, place: &Place, scope: &str) {
        if let Some(clock) = self.priorities.get_mut(&place.priority) {
            clock.now = clock.now.max(place.turn);
            let used = clock.used.entry(scope.to_owned()).or_default();
            *used = place.turn.max(*used);
            clock.latest.retain(|_, latest| *latest >= clock.now);
            clock.used.retain(|_, used| *used >= clock.now);
        }
    }

    /// A scope has left the line: turns that it took and did not use are not held against it.
    pub(crate) fn forget(&mut self, scope: &str) {
        for clock in self.priorities.values_mut() {
            match clock.used.get(scope) {
                Some(used) => clock.latest.insert(scope.to_owned(), *used),
                None => clock.latest.remove(scope),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(priority: i8, number: u64) -> Place {
        Place {
            priority,
            turn: 0,
            number,
            passed: 0,
        }
    }

    #[test]
    fn higher_first_then_older() {
        let line = [
            place(0, 1),
            place(0, 0),
            place(2, 3),
            place(2, 2),
            place(-1, 4),
        ];
        assert_eq!(first(&line, |p| p), Some(3));
        assert_eq!(first(&line[..2], |p| p), Some(1));
        assert_eq!(first(&line[..0], |p| p), None);
    }

    #[test]
    fn nobody_starves() {
        let mut line = vec![place(-2, 0)];
        // Urgent requests keep coming.
        for number in 1..1000 {
            line.push(place(2, number));
            let next = first(&line, |p| p).unwrap();
            let went = line.swap_remove(next);
            if went.number == 0 {
                assert_eq!(number - 1, 4 * u64::from(PATIENCE));
                return;
            }
            pass(&mut line, &went);
        }
        panic!("it never went");
    }

    /// A line in which scopes ask as they like, and who goes in which order.
    #[derive(Default)]
    struct Line {
        turns: Turns,
        waiting: Vec<(&'static str, Place)>,
        next: u64,
    }

    impl Line {
        fn ask(&mut self, scope: &'static str, priority: i8) {
            let turn = self.turns.take(scope, priority);
            let place = Place {
                turn,
                ..place(priority, self.next)
            };
            self.next += 1;
            self.waiting.push((scope, place));
        }

        fn go(&mut self) -> &'static str {
            let next = first(&self.waiting, |w| &w.1).unwrap();
            let (scope, place) = self.waiting.remove(next);
            pass(self.waiting.iter_mut().map(|w| &mut w.1), &place);
            self.turns.went(&place, scope);
            scope
        }

        fn order(&mut self, n: usize) -> String {
            (0..n).map(|_| self.go()).collect()
        }
    }

    #[test]
    fn scopes_go_in_turns() {
        let mut line = Line::default();
        (0..256).for_each(|_| line.ask("a", 0));
        assert_eq!(line.order(3), "aaa");
        // The turn that it is now is theirs as well.
        line.ask("b", 0);
        assert_eq!(line.order(2), "ba");
        (0..3).for_each(|_| line.ask("b", 0));
        (0..2).for_each(|_| line.ask("c", 0));
        assert_eq!(line.order(9), "bcabcabaa");
        // However long it goes on: at most one of each other scope is between two of one.
        for _ in 0..200 {
            line.ask("b", 0);
            assert_eq!(line.order(1), "b");
            assert_eq!(line.order(1), "a");
        }
    }

    #[test]
    fn turns_are_those_of_a_priority() {
        let mut line = Line::default();
        (0..20).for_each(|_| line.ask("a", 1));
        (0..4).for_each(|_| line.ask("a", 0));
        assert_eq!(line.order(5), "aaaaa");
        line.ask("b", 0);
        line.ask("b", 1);
        assert_eq!(line.order(2), "ba");
        let rest = line.order(line.waiting.len());
        assert_eq!(rest, ["a".repeat(15), "baaa".to_owned()].concat());
    }

    #[test]
    fn who_left_the_line_owes_nothing() {
        let mut line = Line::default();
        (0..50).for_each(|_| line.ask("a", 0));
        line.waiting.clear();
        line.turns.forget("a");
        line.ask("b", 0);
        line.ask("b", 0);
        line.ask("a", 0);
        assert_eq!(line.order(3), "bab");
    }

    #[test]
    fn who_asks_and_leaves_holds_nobody_up() {
        let mut line = Line::default();
        (0..3).for_each(|_| line.ask("a", 0));
        line.ask("b", 0);
        assert_eq!(line.order(2), "ab");
        for _ in 0..5 {
            line.ask("b", 0);
            line.waiting.retain(|w| w.0 != "b");
            line.turns.forget("b");
        }
        line.ask("b", 0);
        assert_eq!(line.order(3), "aba");
    }

    #[test]
    fn the_least_urgent_yields_first_and_the_oldest_last() {
        let running = [place(0, 5), place(i8::MIN, 2), place(0, 1), place(3, 0)];
        let by = |p: &&Place| p.yields();
        assert_eq!(running.iter().max_by_key(by).unwrap().number, 2);
        assert_eq!(running.iter().min_by_key(by).unwrap().number, 0);
    }
}
