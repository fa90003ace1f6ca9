//! Goes through a history, and tells what the machine is left with when it ends at a place.
//!
//! A power cut leaves what a finished flush covers, or FUA made durable, and any part of the rest in pieces of a size that
//! the disk writes whole; nothing of the memory. A kill of the process leaves every write that ended, any of those in
//! flight, and the memory. Of two writes to one place the one that ended later wins, if it is left at all.

use super::{
    Image,
    history::{Content, Event, History, Memory},
    tails,
};
use parallax_sim::Prng;
use std::{collections::BTreeMap, fmt, str::FromStr};

/// How a history ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The power goes; nothing that was not flushed is left.
    Nothing,
    /// The power goes; everything is left all the same.
    Everything,
    /// The power goes; each unflushed write is left or not.
    Some,
    /// The power goes; each piece of each unflushed write is left or not.
    Torn,
    /// The power goes; all is left but one unflushed write.
    ButOne,
    /// The process is killed.
    Kill,
}

impl End {
    pub(crate) const ALL: [Self; 6] =
        [Self::Nothing, Self::Everything, Self::Some, Self::Torn, Self::ButOne, Self::Kill];

    fn name(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Everything => "everything",
            Self::Some => "some",
            Self::Torn => "torn",
            Self::ButOne => "but-one",
            Self::Kill => "kill",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|end| end.name() == text);
        found.ok_or_else(|| format!("'{text}' is not one of {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// One place and manner in which a history ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Events before it.
    pub(crate) position: usize,
    pub(crate) end: End,
    /// Decides what is left.
    pub(crate) seed: u64,
}

/// What is left.
#[derive(Clone, Debug)]
pub(crate) struct Remains {
    pub(crate) image: Image,
    pub(crate) tails: Memory,
    /// Identity of the next boot; the same after a kill.
    pub(crate) boot: u128,
    /// Last promise of each worker.
    pub(crate) promises: BTreeMap<u32, u64>,
}

struct Unflushed {
    number: u64,
    offset: u64,
    content: Content,
    fua: bool,
}

/// See the module.
pub(crate) struct Player<'a> {
    history: &'a History,
    /// Bytes that are written whole or not at all.
    piece: usize,
    position: usize,
    /// What no power cut takes away.
    durable: Image,
    tails: Memory,
    promises: BTreeMap<u32, u64>,
    writes: u64,
    flying: BTreeMap<u64, Unflushed>,
    /// In the order in which they ended.
    ended: Vec<Unflushed>,
    /// For each flush under way, how many of `ended` it covers.
    flushing: BTreeMap<u64, usize>,
}

impl<'a> Player<'a> {
    /// At the beginning.
    pub(crate) fn new(history: &'a History, piece: usize) -> Self {
        Self {
            history,
            piece,
            position: 0,
            durable: history.base.clone(),
            tails: history.tails.clone(),
            promises: BTreeMap::new(),
            writes: 0,
            flying: BTreeMap::new(),
            ended: Vec::new(),
            flushing: BTreeMap::new(),
        }
    }

    /// What is left by `cut`, which must not lie before an earlier one.
    pub(crate) fn cut(&mut self, cut: Cut) -> Remains {
        let history = self.history;
        while self.position < cut.position.min(history.events.len()) {
            self.pass(&history.events[self.position]);
            self.position += 1;
        }
        let mut prng = Prng::new(cut.seed);
        let mut image = self.durable.clone();
        let kill = cut.end == End::Kill;
        let count = (self.ended.len() + self.flying.len()) as u64;
        let missing = (count > 0).then(|| prng.range(0..count));
        for (at, write) in self.ended.iter().chain(self.flying.values()).enumerate() {
            let ended = at < self.ended.len();
            let sure = ended && (write.fua || kill);
            let whole = match cut.end {
                _ if sure => true,
                End::Nothing => false,
                End::Everything => true,
                End::Some | End::Kill => prng.chance(1, 2),
                End::ButOne => missing != Some(at as u64),
                End::Torn => {
                    write.tear(&mut image, self.piece, &mut prng);
                    false
                }
            };
            if whole {
                write.content.apply(&mut image, write.offset, 0..write.content.len());
            }
        }
        let (tails, boot) = match kill {
            true => (self.tails.clone(), history.boot),
            false => (Memory::new(), history.boot.wrapping_add(1)),
        };
        Remains { image, tails, boot, promises: self.promises.clone() }
    }

    fn pass(&mut self, event: &Event) {
        match event {
            Event::WriteBegins { offset, content, fua } => {
                let write =
                    Unflushed { number: self.writes, offset: *offset, content: content.clone(), fua: *fua };
                self.flying.insert(self.writes, write);
                self.writes += 1;
            }
            Event::WriteEnds { write } => self.ended.extend(self.flying.remove(write)),
            Event::FlushBegins { flush } => {
                self.flushing.insert(*flush, self.ended.len());
            }
            Event::FlushEnds { flush } => {
                let covered = self.flushing.remove(flush).unwrap_or(0);
                for write in self.ended.drain(..covered) {
                    write.content.apply(&mut self.durable, write.offset, 0..write.content.len());
                }
                for count in self.flushing.values_mut() {
                    *count = count.saturating_sub(covered);
                }
            }
            Event::Promise { worker, number } => {
                self.promises.insert(*worker, *number);
            }
            Event::TailCreated { .. } | Event::TailWritten { .. } | Event::TailRemoved { .. } => {
                tails::apply(&mut self.tails, event);
            }
        }
    }

    /// Writes that a power cut here may take away.
    pub(crate) fn unflushed(&self) -> usize {
        self.ended.len() + self.flying.len()
    }
}

impl Unflushed {
    fn tear(&self, image: &mut Image, piece: usize, prng: &mut Prng) {
        // Most writes are torn once, few are in shreds.
        let length = self.content.len();
        // Pieces lie where the disk has them, wherever the write begins.
        let before = (self.offset % piece as u64) as usize;
        let end = |number: usize| (number * piece).saturating_sub(before).min(length);
        let pieces = (before + length).div_ceil(piece);
        if prng.chance(1, 4) {
            for number in 0..pieces {
                if prng.chance(1, 2) {
                    self.content.apply(image, self.offset, end(number)..end(number + 1));
                }
            }
            return;
        }
        let at = end(prng.range(0..pieces as u64 + 1) as usize);
        let part = if self.number.is_multiple_of(2) { 0..at } else { at..length };
        self.content.apply(image, self.offset, part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(offset: u64, byte: u8, fua: bool) -> Event {
        Event::WriteBegins { offset, content: Content::Bytes(vec![byte; 4096].into()), fua }
    }

    fn left(events: Vec<Event>, end: End, seed: u64) -> Vec<u8> {
        let history = History { boot: 1, base: Image::new(1 << 20), tails: Memory::new(), events };
        let position = history.events.len();
        let image = Player::new(&history, 512).cut(Cut { position, end, seed }).image;
        [0, 4096, 8192]
            .map(|at| {
                let mut byte = [0];
                image.read(at, &mut byte);
                byte[0]
            })
            .to_vec()
    }

    fn overlapped() -> Vec<Event> {
        vec![
            write(0, 1, false),
            write(4096, 2, false),
            Event::WriteEnds { write: 0 },
            Event::FlushBegins { flush: 0 },
            Event::WriteEnds { write: 1 },
            write(8192, 3, true),
            Event::WriteEnds { write: 2 },
            Event::FlushEnds { flush: 0 },
        ]
    }

    #[test]
    fn a_flush_covers_what_ended_before_it_began() {
        assert_eq!(left(overlapped(), End::Nothing, 0), [1, 0, 3]);
        assert_eq!(left(overlapped(), End::Everything, 0), [1, 2, 3]);
    }

    #[test]
    fn any_subset_of_the_rest_may_be_left() {
        let seen: std::collections::BTreeSet<_> =
            (0..50).map(|seed| left(overlapped(), End::Some, seed)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [vec![1, 0, 3], vec![1, 2, 3]]);
    }

    #[test]
    fn a_write_is_torn_between_pieces_of_the_disk() {
        let events =
            vec![Event::WriteBegins { offset: 512, content: Content::Bytes([7; 3584].into()), fua: false }];
        let history = History { boot: 1, base: Image::new(1 << 20), tails: Memory::new(), events };
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let image = Player::new(&history, 1024).cut(Cut { position: 1, end: End::Torn, seed }).image;
            let mut bytes = [0; 4096];
            image.read(0, &mut bytes);
            seen.insert(bytes.chunks(512).map(|sector| sector[0]).collect::<Vec<u8>>());
        }
        assert!(seen.len() > 8, "{seen:?}");
        assert!(
            seen.iter()
                .all(|sectors| sectors[0] == 0 && (1..4).all(|at| sectors[2 * at] == sectors[2 * at + 1]))
        );
    }

    #[test]
    fn a_kill_leaves_what_ended() {
        let events = vec![write(0, 1, false), Event::WriteEnds { write: 0 }, write(4096, 2, false)];
        let seen: std::collections::BTreeSet<_> =
            (0..50).map(|seed| left(events.clone(), End::Kill, seed)).collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [vec![1, 0, 0], vec![1, 2, 0]]);
    }

    #[test]
    fn an_older_write_never_comes_back_over_a_durable_one() {
        let events = vec![
            write(0, 1, false),
            Event::WriteEnds { write: 0 },
            write(0, 2, true),
            Event::WriteEnds { write: 1 },
        ];
        for seed in 0..50 {
            assert_eq!(left(events.clone(), End::Some, seed)[0], 2);
        }
    }
}
