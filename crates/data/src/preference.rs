//! Rows of the stages that learn from preferences: an encoded row holds several sequences, which don't see each other.
//!
//! Of stages rm and dpo the answer that is preferred, with its prompt, and the one that isn't. Of stage kto the answer that was
//! judged, and the row's prompt with another row's answer, from which a batch's divergence is estimated; a third, empty
//! sequence says that the answer isn't wanted, so that the file of rows needs no field that other stages leave empty.

use crate::encode::Encoded;
use crate::rows::Row;

/// A sequence of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part<'a> {
    /// Token ids.
    pub input_ids: &'a [u32],
    /// Labels, -100 where there is no loss.
    pub labels: &'a [i32],
}

/// A row of stage rm or dpo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    /// With the answer that is preferred.
    pub chosen: Part<'a>,
    /// With the other one.
    pub rejected: Part<'a>,
}

/// A row of stage kto.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feedback<'a> {
    /// With its own answer.
    pub own: Part<'a>,
    /// With another row's.
    pub mismatched: Part<'a>,
    /// Whether its answer is one to give.
    pub wanted: bool,
}

impl<'a> Pair<'a> {
    /// The row's two sequences; nothing if it has another number of them.
    pub fn of(row: &Row<'a>) -> Option<Self> {
        let [chosen, rejected] = parts(row)[..] else { return None };
        Some(Self { chosen, rejected })
    }
}

impl<'a> Feedback<'a> {
    /// The row's sequences and its tag; nothing if it isn't made like this.
    pub fn of(row: &Row<'a>) -> Option<Self> {
        match parts(row)[..] {
            [own, mismatched] => Some(Self { own, mismatched, wanted: true }),
            [own, mismatched, mark] if mark.input_ids.is_empty() => Some(Self { own, mismatched, wanted: false }),
            _ => None,
        }
    }

    /// The sequences of a row.
    pub(crate) fn sequences(own: Encoded, mismatched: Encoded, wanted: bool) -> Vec<Encoded> {
        let mut sequences = vec![own, mismatched];
        if !wanted {
            sequences.push(Encoded::default());
        }
        sequences
    }
}

fn parts<'a>(row: &Row<'a>) -> Vec<Part<'a>> {
    let (mut ids, mut labels) = (row.input_ids, row.labels);
    let mut take = |&len: &u32| {
        let of = (ids.split_at(len as usize), labels.split_at(len as usize));
        (ids, labels) = (of.0.1, of.1.1);
        Part { input_ids: of.0.0, labels: of.1.0 }
    };
    row.segments.iter().map(&mut take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_taken_apart_as_it_was_put_together() {
        let row = |segments: &'static [u32]| Row {
            input_ids: &[1, 2, 3, 4, 5],
            labels: &[-100, 2, -100, 4, 5],
            segments,
            isolated: true,
            source: (0, 0),
        };
        let part = |input_ids, labels| Part { input_ids, labels };
        let (own, other) = (part(&[1, 2][..], &[-100, 2][..]), part(&[3, 4, 5][..], &[-100, 4, 5][..]));
        assert_eq!(Pair::of(&row(&[2, 3])), Some(Pair { chosen: own, rejected: other }));
        assert_eq!(Feedback::of(&row(&[2, 3])), Some(Feedback { own, mismatched: other, wanted: true }));
        assert_eq!(Feedback::of(&row(&[2, 3, 0])), Some(Feedback { own, mismatched: other, wanted: false }));
        assert_eq!((Pair::of(&row(&[5])), Feedback::of(&row(&[2, 2, 1]))), (None, None));
    }
}
