//! Where the elements of a row go in operations that compute nothing: slices, concatenations, transpositions.

/// One of the nested loops over the elements that move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Loop {
    count: usize,
    /// Elements from one turn to the next in the row that is read.
    from: usize,
    /// The same in the row that is written.
    to: usize,
}

/// A way of elements from one row to another: nested loops around a run of elements that stay neighbours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Movement {
    /// Outermost first.
    loops: Vec<Loop>,
    /// Elements of a run.
    run: usize,
    /// The first element that is read.
    from: usize,
    /// The first element that is written.
    to: usize,
}

impl Movement {
    /// The part of a row of the given shape whose index along `axis` is in `start..end`.
    pub(crate) fn slice(shape: &[usize], axis: usize, start: usize, end: usize) -> Self {
        let Some(places) = Places::of(shape, axis) else { return Self::default() };
        let length = (end - start) * places.inner;
        let outer = Loop { count: places.outer, from: places.size * places.inner, to: length };
        Self::new(&[outer, Loop { count: length, from: 1, to: 1 }], start * places.inner, 0)
    }

    /// A row of the given shape into one whose size along `axis` is `total`, from index `start` of it on.
    pub(crate) fn part(shape: &[usize], axis: usize, start: usize, total: usize) -> Self {
        let Some(places) = Places::of(shape, axis) else { return Self::default() };
        let length = places.size * places.inner;
        let outer = Loop { count: places.outer, from: length, to: total * places.inner };
        Self::new(&[outer, Loop { count: length, from: 1, to: 1 }], 0, start * places.inner)
    }

    /// A row of the given shape with its axes permuted: axis `i` of the result is axis `permutation[i]`.
    pub(crate) fn transpose(shape: &[usize], permutation: &[usize]) -> Self {
        if shape.contains(&0) {
            return Self::default();
        }
        let sizes: Vec<usize> = permutation.iter().map(|axis| shape[*axis]).collect();
        let step = |shape: &[usize], axis: usize| shape[axis + 1..].iter().product::<usize>();
        let axes = permutation.iter().enumerate();
        let loops: Vec<Loop> = axes
            .map(|(index, axis)| Loop { count: sizes[index], from: step(shape, *axis), to: step(&sizes, index) })
            .collect();
        Self::new(&loops, 0, 0)
    }

    /// Loops with those that do nothing taken out and those that are one longer loop merged.
    fn new(all: &[Loop], from: usize, to: usize) -> Self {
        let mut loops: Vec<Loop> = Vec::with_capacity(all.len());
        for next in all.iter().filter(|next| next.count != 1) {
            match loops.last_mut() {
                Some(last) if last.from == next.count * next.from && last.to == next.count * next.to => {
                    *last = Loop { count: last.count * next.count, ..*next };
                }
                _ => loops.push(*next),
            }
        }
        let run = loops.pop_if(|last| last.from == 1 && last.to == 1).map_or(1, |last| last.count);
        Self { loops, run, from, to }
    }

    /// Whether every element is read and written inside rows of these widths.
    pub(crate) fn fits(&self, from: usize, to: usize) -> bool {
        if self.run == 0 || self.loops.iter().any(|turn| turn.count == 0) {
            return true;
        }
        let last = |step: fn(&Loop) -> usize, first: usize| {
            self.loops.iter().map(|turn| (turn.count - 1) * step(turn)).sum::<usize>() + first + self.run
        };
        last(|turn| turn.from, self.from) <= from && last(|turn| turn.to, self.to) <= to
    }

    /// Moves the elements.
    pub(super) fn run(&self, from: &[f32], to: &mut [f32]) {
        if self.run > 0 {
            self.turn(&self.loops, from, to, self.from, self.to);
        }
    }

    fn turn(&self, loops: &[Loop], from: &[f32], to: &mut [f32], first: usize, target: usize) {
        match loops {
            [] => to[target..][..self.run].copy_from_slice(&from[first..][..self.run]),
            [last] if self.run == 1 => {
                for index in 0..last.count {
                    to[target + index * last.to] = from[first + index * last.from];
                }
            }
            [outer, inner @ ..] => {
                for index in 0..outer.count {
                    self.turn(inner, from, to, first + index * outer.from, target + index * outer.to);
                }
            }
        }
    }
}

/// An axis of a row's shape, with the products of the sizes before and after it.
struct Places {
    outer: usize,
    size: usize,
    inner: usize,
}

impl Places {
    /// `None` for a row without elements. Products of a row's sizes fit, since the number of its elements does.
    fn of(shape: &[usize], axis: usize) -> Option<Self> {
        let (size, rest) = (*shape.get(axis)?, &shape[axis + 1..]);
        let elements = !shape.contains(&0);
        elements.then(|| Self { outer: shape[..axis].iter().product(), size, inner: rest.iter().product() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(movement: &Movement, from: usize, to: usize) -> Vec<f32> {
        assert!(movement.fits(from, to), "{movement:?} in {from} and {to}");
        let row: Vec<f32> = (0..from).map(|value| value as f32).collect();
        let mut result = vec![-1.0; to];
        movement.run(&row, &mut result);
        result
    }

    #[test]
    fn parts_of_rows_go_where_their_axes_say() {
        assert_eq!(moved(&Movement::slice(&[3, 2], 1, 1, 2), 6, 3), [1.0, 3.0, 5.0]);
        assert_eq!(moved(&Movement::slice(&[3, 2], 0, 1, 3), 6, 4), [2.0, 3.0, 4.0, 5.0]);
        assert_eq!(moved(&Movement::part(&[2, 2], 1, 1, 3), 4, 6), [-1.0, 0.0, 1.0, -1.0, 2.0, 3.0]);
        assert_eq!(moved(&Movement::transpose(&[2, 3], &[1, 0]), 6, 6), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        let turned = moved(&Movement::transpose(&[2, 3, 2], &[1, 0, 2]), 12, 12);
        assert_eq!(turned, [0.0, 1.0, 6.0, 7.0, 2.0, 3.0, 8.0, 9.0, 4.0, 5.0, 10.0, 11.0]);
    }

    #[test]
    fn neighbours_move_as_one_run() {
        let whole = Movement { loops: Vec::new(), run: 24, from: 0, to: 0 };
        assert_eq!(Movement::slice(&[2, 3, 4], 1, 0, 3), whole);
        assert_eq!(Movement::transpose(&[2, 3, 4], &[0, 1, 2]), whole);
        assert_eq!(Movement::transpose(&[1, 24], &[1, 0]), whole);
        assert_eq!(Movement::transpose(&[2, 3, 4], &[1, 0, 2]).run, 4);
    }

    #[test]
    fn what_would_leave_a_row_does_not_fit() {
        let movement = Movement::slice(&[3, 4], 1, 1, 3);
        assert!(movement.fits(12, 6));
        assert!(!movement.fits(10, 6));
        assert!(!movement.fits(12, 5));
        let empty = Movement::transpose(&[0, usize::MAX, usize::MAX], &[2, 1, 0]);
        assert!(moved(&empty, 0, 0).is_empty());
        assert_eq!(Movement::part(&[usize::MAX, usize::MAX, 0], 1, 0, usize::MAX), Movement::default());
    }
}
