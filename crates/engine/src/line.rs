//! Who is next.
//!
//! Of those that wait, the one with the highest rank; of equals, the one that came first. A rank is
//! a priority, raised by one level for every [`PATIENCE`] others that were let pass: so nobody
//! waits for ever, whatever comes after.

/// As many may pass before a priority counts as one higher.
pub(crate) const PATIENCE: u32 = 8;

/// A place in line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Higher goes first.
    pub(crate) priority: i8,
    /// Counts up with every request.
    pub(crate) number: u64,
    /// Others that went first although they came later.
    pub(crate) passed: u32,
}

impl Place {
    /// The smaller, the sooner.
    pub(crate) fn order(&self) -> (i64, u64) {
        let rank = i64::from(self.priority) + i64::from(self.passed / PATIENCE);
        (-rank, self.number)
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

/// Somebody with this number went: those who came before were passed.
pub(crate) fn pass<'p>(waiting: impl IntoIterator<Item = &'p mut Place>, number: u64) {
    for place in waiting {
        if place.number < number {
            place.passed = place.passed.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(priority: i8, number: u64) -> Place {
        Place {
            priority,
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
            pass(&mut line, went.number);
        }
        panic!("it never went");
    }

    #[test]
    fn the_least_urgent_yields_first_and_the_oldest_last() {
        let running = [place(0, 5), place(i8::MIN, 2), place(0, 1), place(3, 0)];
        let by = |p: &&Place| p.yields();
        assert_eq!(running.iter().max_by_key(by).unwrap().number, 2);
        assert_eq!(running.iter().min_by_key(by).unwrap().number, 0);
    }
}
