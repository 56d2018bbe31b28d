//! What travels on a data connection: a header of fixed size, then the bytes of a message or a short text. A header is
//! refused unless every field of it makes sense, and no length in it makes anybody allocate.

use crate::transport::{Call, Head, Op};
use crate::{Activity, Beat, CommError};

/// Bytes of a header.
pub(super) const HEADER: usize = 64;
/// Most bytes of an error's text form.
const MOST_TEXT: usize = 4096;
/// Most bytes of each of its strings.
const MOST_STRING: usize = 1300;

/// The content of a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frame {
    /// A message of `length` bytes follows.
    Data(Head),
    /// Its sender lives.
    Beat(Beat),
    /// Its sender sends no more messages.
    Bye,
    /// Its sender has got all that came before a bye.
    Heard,
    /// The run is over; the error follows, in so many bytes.
    Abort(usize),
}

impl Frame {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let (kind, small, step, wide) = match *self {
            Self::Data(Head { call, step, length }) => {
                (1, call.op as u8, step, [call.group, call.sequence, call.bytes, length, 0, 0, 0])
            }
            Self::Beat(beat) => {
                let Beat { step, collectives, tokens, memory, communicating, waiting, .. } = beat;
                let wide = [step, collectives, tokens, memory, communicating, waiting, 0];
                (2, beat.activity as u8, u32::from(beat.in_collective), wide)
            }
            Self::Bye => (3, 0, 0, [0; 7]),
            Self::Heard => (4, 0, 0, [0; 7]),
            Self::Abort(length) => (5, 0, 0, [length as u64, 0, 0, 0, 0, 0, 0]),
        };
        let mut bytes = [0; HEADER];
        bytes[..2].copy_from_slice(&[kind, small]);
        bytes[4..8].copy_from_slice(&step.to_le_bytes());
        for (to, value) in bytes[8..].chunks_exact_mut(8).zip(wide) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8; HEADER]) -> Option<Self> {
        let wide = |i: usize| bytes[8 + 8 * i..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let step = bytes[4..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        let frame = match bytes[0] {
            1 => {
                let call = Call { op: Op::from_number(bytes[1])?, group: wide(0), sequence: wide(1), bytes: wide(2) };
                Self::Data(Head { call, step, length: wide(3) })
            }
            2 => {
                let (activity, in_collective) = (Activity::from_number(bytes[1])?, step == 1);
                let beat = Beat {
                    step: wide(0),
                    activity,
                    collectives: wide(1),
                    in_collective,
                    tokens: wide(2),
                    memory: wide(3),
                    communicating: wide(4),
                    waiting: wide(5),
                };
                Self::Beat(beat)
            }
            3 => Self::Bye,
            4 => Self::Heard,
            5 => Self::Abort(usize::try_from(wide(0)).ok().filter(|length| *length <= MOST_TEXT)?),
            _ => return None,
        };
        // Whatever a header doesn't need is zero.
        (frame.encode() == *bytes).then_some(frame)
    }
}

/// The text form of what ends the run. Only a peer's end travels; see [`told`](crate::told).
pub(super) fn encode_error(error: &CommError) -> Vec<u8> {
    let (kind, rank, texts) = match error {
        CommError::PeerLost { rank, host, reason, doing } => (0, *rank, [host, reason, doing]),
        CommError::PeerFailed { rank, host, reason, doing } => (1, *rank, [host, reason, doing]),
        CommError::OutOfStep { .. } | CommError::Ended(_) => return Vec::new(),
    };
    let mut bytes = vec![kind];
    bytes.extend((rank as u32).to_le_bytes());
    for text in texts {
        let end = (0..=text.len().min(MOST_STRING)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        let text = &text[..end];
        bytes.extend((text.len() as u16).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}

/// Reads what [`encode_error`] wrote; none if anything about it is odd.
pub(super) fn decode_error(bytes: &[u8], world: usize) -> Option<CommError> {
    let (&kind, rest) = bytes.split_first()?;
    let (rank, mut rest) = rest.split_first_chunk()?;
    let rank = usize::try_from(u32::from_le_bytes(*rank)).ok().filter(|rank| *rank < world)?;
    let mut text = || {
        let (length, after) = rest.split_first_chunk()?;
        let (text, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        rest = after;
        // It goes to a terminal.
        Some(std::str::from_utf8(text).ok()?.replace(|c: char| c.is_control() && c != '\n', "?"))
    };
    let (host, reason, doing) = (text()?, text()?, text()?);
    match kind {
        _ if !rest.is_empty() => None,
        0 => Some(CommError::PeerLost { rank, host, reason, doing }),
        1 => Some(CommError::PeerFailed { rank, host, reason, doing }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_errors_survive_the_wire() {
        let call = Call { op: Op::Exchange, group: 1 << 60, sequence: 3, bytes: 5 };
        let beat = Beat {
            step: 7,
            activity: Activity::Saving,
            collectives: 9,
            in_collective: true,
            tokens: 10,
            memory: 11,
            communicating: 12,
            waiting: 13,
        };
        let data = Frame::Data(Head { call, step: 8, length: 1 << 40 });
        for frame in [data, Frame::Beat(beat), Frame::Bye, Frame::Heard, Frame::Abort(MOST_TEXT)] {
            assert_eq!(Frame::decode(&frame.encode()), Some(frame));
        }
        let text = |c: &str| c.repeat(3000);
        let long = CommError::PeerFailed { rank: 2, host: text("ä"), reason: text("b"), doing: text("c") };
        let bytes = encode_error(&long);
        assert!(bytes.len() <= MOST_TEXT);
        let read = decode_error(&bytes, 3).unwrap();
        assert!(matches!(&read, CommError::PeerFailed { rank: 2, host, .. } if host.len() == MOST_STRING));
        assert_eq!(decode_error(&bytes, 2), None, "no such rank");
    }

    #[test]
    fn oddities_are_refused() {
        let mut header = Frame::Bye.encode();
        header[3] = 1;
        assert_eq!(Frame::decode(&header), None);
        assert_eq!(Frame::decode(&Frame::Abort(MOST_TEXT + 1).encode()), None);
        assert_eq!(Frame::decode(&[0; HEADER]), None);
        let bytes = encode_error(&CommError::PeerLost {
            rank: 1,
            host: "\u{1b}[2Ja".into(),
            reason: "b".into(),
            doing: "c".into(),
        });
        assert!(matches!(decode_error(&bytes, 2), Some(CommError::PeerLost { host, .. }) if host == "?[2Ja"));
        for cut in 0..bytes.len() {
            assert_eq!(decode_error(&bytes[..cut], 2), None);
        }
        assert_eq!(decode_error(&[&bytes[..], &[0]].concat(), 2), None);
    }
}
