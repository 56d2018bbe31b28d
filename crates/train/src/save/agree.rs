//! Ways in which ranks come to one answer, or to one error: a failure on one is an error on all, which says whose.

use crate::{Error, Result};
use ferrotune_dist::Comm;

/// Longest reason that is told to the others, in bytes.
const MAX_REASON: usize = 4096;
/// Bytes that one exchange carries.
const CHUNK: usize = 1 << 20;
/// Longest thing that is shared: a log of some million rows.
const MAX_SHARED: u64 = 1 << 32;

/// Every rank's bytes at every rank; or, if a rank has an error, that rank's own there and [`Error::Peer`] elsewhere.
/// `doing` goes on from "could not".
pub(super) fn exchange(comm: &dyn Comm, doing: &'static str, mine: Result<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let message = match &mine {
        Ok(bytes) => [&[0], &bytes[..]].concat(),
        Err(error) => [&[1], reason(error).as_bytes()].concat(),
    };
    let all = comm.exchange(&message)?;
    mine?;
    let told = all.into_iter().enumerate().map(|(rank, mut message)| {
        if message.first() == Some(&0) {
            message.remove(0);
            return Ok(message);
        }
        let reason = String::from_utf8_lossy(message.get(1..).unwrap_or_default()).into_owned();
        Err(Error::Peer { rank, doing, reason })
    });
    told.collect()
}

/// The same where there is nothing to tell but that it went well.
pub(super) fn settle(comm: &dyn Comm, doing: &'static str, mine: Result<()>) -> Result<()> {
    exchange(comm, doing, mine.map(|()| Vec::new())).map(drop)
}

/// The bytes that rank `root` has, at every rank; the others give `None`.
pub(super) fn share(
    comm: &dyn Comm,
    doing: &'static str,
    root: usize,
    mine: Option<Result<Vec<u8>>>,
) -> Result<Vec<u8>> {
    let (length, bytes) = match mine {
        None => (Ok(0), Vec::new()),
        Some(Ok(bytes)) => (Ok(bytes.len() as u64), bytes),
        Some(Err(error)) => (Err(error), Vec::new()),
    };
    let lengths = exchange(comm, doing, length.map(|length| length.to_le_bytes().to_vec()))?;
    let length = lengths.get(root).and_then(|bytes| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?)));
    let length = length.filter(|&length| length <= MAX_SHARED);
    let length = length.ok_or(Error::Peer { rank: root, doing, reason: "it announced too many bytes".into() })?;
    let mut whole = Vec::new();
    for start in (0..length as usize).step_by(CHUNK) {
        let chunk = bytes.get(start..(start + CHUNK).min(bytes.len())).unwrap_or_default();
        let mut all = comm.exchange(chunk)?;
        whole.append(&mut all[root]);
    }
    if whole.len() as u64 != length {
        let reason = format!("it sent {} of {length} bytes", whole.len());
        return Err(Error::Peer { rank: root, doing, reason });
    }
    Ok(whole)
}

/// An error in words, not too long.
pub(super) fn reason(error: &Error) -> String {
    let mut text = error.to_string();
    let end = (0..=MAX_REASON.min(text.len())).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text.truncate(end);
    text
}
