//! Byte-level byte-pair merging with a memory of words seen.
//!
//! Text repeats its words, so almost every word is answered from a table. The table belongs to the
//! thread and is emptied when it is full: hostile text can make it useless, not large.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ahash::AHashMap;

/// Longest word kept in the table, in bytes.
const CACHED_WORD: usize = 48;
/// Words kept in the table of a thread.
const CACHED_WORDS: usize = 1 << 17;

/// Vocabulary and merges of a byte-level model.
pub(super) struct Bpe {
    /// Id of each byte.
    pub(super) bytes: [u32; 256],
    /// Pair of ids, `left << 32 | right`, to the rank of its merge and the id it becomes.
    pub(super) merges: AHashMap<u64, (u32, u32)>,
    /// Words that are one token whatever the merges say (`ignore_merges`); empty if there are none.
    pub(super) whole: AHashMap<Box<[u8]>, u32>,
    /// Tells this model's words from another's in the table of a thread.
    pub(super) identity: u64,
}

#[derive(Default)]
struct Cache {
    identity: u64,
    words: AHashMap<Box<[u8]>, (u32, u32)>,
    ids: Vec<u32>,
    merger: Merger,
}

impl Cache {
    fn forget(&mut self) {
        self.words.clear();
        self.ids.clear();
    }
}

thread_local! {
    static CACHE: RefCell<Cache> = RefCell::default();
}

impl Bpe {
    /// Runs `feed`, which is given a function that appends the ids of a word to `out`.
    pub(super) fn encode_words(&self, out: &mut Vec<u32>, feed: impl FnOnce(&mut dyn FnMut(&[u8]))) {
        CACHE.with_borrow_mut(|cache| {
            if cache.identity != self.identity {
                cache.identity = self.identity;
                cache.forget();
            }
            feed(&mut |word| self.encode_word(word, cache, out));
        });
    }

    #[inline]
    fn encode_word(&self, word: &[u8], cache: &mut Cache, out: &mut Vec<u32>) {
        if let [byte] = word {
            out.push(self.bytes[usize::from(*byte)]);
            return;
        }
        if let Some(&(start, end)) = cache.words.get(word) {
            out.extend_from_slice(&cache.ids[start as usize..end as usize]);
            return;
        }
        let first = out.len();
        match self.whole.get(word) {
            Some(&id) => out.push(id),
            None => cache.merger.merge(self, word, out),
        }
        if word.len() <= CACHED_WORD {
            if cache.words.len() >= CACHED_WORDS {
                cache.forget();
            }
            let start = cache.ids.len() as u32; // at most CACHED_WORD ids a word
            cache.ids.extend_from_slice(&out[first..]);
            cache.words.insert(word.into(), (start, cache.ids.len() as u32));
        }
    }

    fn merge_of(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.merges.get(&(u64::from(left) << 32 | u64::from(right))).copied()
    }
}

/// Symbols of one word, linked, and the merges that are possible between them.
#[derive(Default)]
struct Merger {
    symbols: Vec<Symbol>,
    /// Rank, place of the left symbol, id: the lowest rank first, then the leftmost place.
    queue: BinaryHeap<Reverse<(u32, u32, u32)>>,
}

#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    previous: u32,
    next: u32,
    alive: bool,
}

/// No neighbour.
const NONE: u32 = u32::MAX;

impl Merger {
    fn merge(&mut self, bpe: &Bpe, word: &[u8], out: &mut Vec<u32>) {
        self.symbols.clear();
        self.queue.clear();
        let last = word.len() - 1;
        self.symbols.extend(word.iter().enumerate().map(|(i, &byte)| Symbol {
            id: bpe.bytes[usize::from(byte)],
            previous: if i == 0 { NONE } else { i as u32 - 1 },
            next: if i == last { NONE } else { i as u32 + 1 },
            alive: true,
        }));
        for at in 0..last {
            self.offer(bpe, at as u32);
        }
        while let Some(Reverse((_, at, id))) = self.queue.pop() {
            self.apply(bpe, at, id);
        }
        out.extend(self.symbols.iter().filter(|s| s.alive).map(|s| s.id));
    }

    /// Queues the merge of the symbol at `at` with its right neighbour, if there is one.
    fn offer(&mut self, bpe: &Bpe, at: u32) {
        let left = self.symbols[at as usize];
        if left.next == NONE {
            return;
        }
        if let Some((rank, id)) = bpe.merge_of(left.id, self.symbols[left.next as usize].id) {
            self.queue.push(Reverse((rank, at, id)));
        }
    }

    /// Merges the symbol at `at` into `id`, unless one of the two has changed since it was queued.
    fn apply(&mut self, bpe: &Bpe, at: u32, id: u32) {
        let left = self.symbols[at as usize];
        if !left.alive || left.next == NONE {
            return;
        }
        let right = self.symbols[left.next as usize];
        if bpe.merge_of(left.id, right.id).is_none_or(|(_, now)| now != id) {
            return;
        }
        self.symbols[left.next as usize].alive = false;
        self.symbols[at as usize] = Symbol { id, next: right.next, ..left };
        if right.next != NONE {
            self.symbols[right.next as usize].previous = at;
        }
        if left.previous != NONE {
            self.offer(bpe, left.previous);
        }
        self.offer(bpe, at);
    }
}
