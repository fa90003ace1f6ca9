//! What the next daemon has to know of this one's exports, as a file in memory that a holder keeps.
//!
//! ```text
//! parallax-exports 1
//! instance parallax-0123456789abcdef01234567
//! write_bytes_max 1048576
//! next_inode 18
//! export <key> <inode> <rw|ro> <queue settings before ours: name=value,... or -> <note or ->
//! ```
//!
//! Text, because it is read by other versions than the one that wrote it, and by people. The loop device of an
//! export is not in it: the kernel knows that better.

use super::ExportKey;
use parallax_block::{Error, Result, ResultExt};
use rustix::fs::{MemfdFlags, memfd_create};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, Read, Seek, Write},
    os::fd::OwnedFd,
};

const HEAD: &str = "parallax-exports 1";

/// Bytes of a state that are read at most.
const STATE_BYTES_MAX: u64 = 16 << 20;

/// Stands for nothing.
const NONE: &str = "-";

/// All exports of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) instance: String,
    pub(super) write_bytes_max: u32,
    /// No file had this number or a later one.
    pub(super) next_inode: u64,
    pub(super) exports: BTreeMap<ExportKey, Kept>,
}

/// One export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) inode: u64,
    pub(super) read_only: bool,
    /// Limits of the loop device's queue before they were ours.
    pub(super) untuned: Vec<(String, String)>,
    /// Whatever the user of the exports wants to find again.
    pub(super) note: Note,
}

/// A word that goes with an export and comes back to the next daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Note(String);

impl Note {
    /// Longest note.
    pub const LENGTH_MAX: usize = 200;

    /// A note: visible ASCII without spaces, not `-`.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let visible = text.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || text == NONE || text.len() > Self::LENGTH_MAX {
            return Err(Error::invalid(format!("{text:?} is not a note of an export")));
        }
        Ok(Self(text))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { NONE } else { text }
}

impl State {
    fn encode(&self) -> String {
        let mut text = format!(
            "{HEAD}\ninstance {}\nwrite_bytes_max {}\nnext_inode {}\n",
            self.instance, self.write_bytes_max, self.next_inode
        );
        for (key, export) in &self.exports {
            let access = if export.read_only { "ro" } else { "rw" };
            let untuned: Vec<String> =
                export.untuned.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let _ = writeln!(
                text,
                "export {key} {} {access} {} {}",
                export.inode,
                or_none(&untuned.join(",")),
                or_none(export.note.as_str())
            );
        }
        text
    }

    fn decode(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        if lines.next() != Some(HEAD) {
            return Err(bad("it begins otherwise"));
        }
        let mut state =
            Self { instance: String::new(), write_bytes_max: 0, next_inode: 0, exports: BTreeMap::new() };
        for line in lines {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["instance", name] => state.instance = name.to_owned(),
                ["write_bytes_max", number] => state.write_bytes_max = parse(number)?,
                ["next_inode", number] => state.next_inode = parse(number)?,
                ["export", key, inode, access, untuned, note] => {
                    let export = Kept::decode(inode, access, untuned, note)?;
                    if export.inode >= state.next_inode {
                        return Err(bad("a file has a number that was never given"));
                    }
                    state.exports.insert(ExportKey::new(key)?, export);
                }
                _ => return Err(bad(&format!("the line {line:?} is unknown"))),
            }
        }
        if state.instance.is_empty() || !(4096..=16 << 20).contains(&state.write_bytes_max) {
            return Err(bad("the connection is not described"));
        }
        Ok(state)
    }

    /// Into a new file in memory.
    pub(super) fn write(&self) -> Result<OwnedFd> {
        let writing = || "writing down what the next daemon has to know";
        let made = memfd_create("parallax-exports", MemfdFlags::CLOEXEC);
        let mut file = File::from(made.map_err(io::Error::from).context(writing)?);
        file.write_all(self.encode().as_bytes()).context(writing)?;
        Ok(file.into())
    }

    /// From the file of an earlier daemon.
    pub(super) fn read(file: OwnedFd) -> Result<Self> {
        let reading = || "reading what the daemon before left";
        let mut file = File::from(file);
        let mut text = String::new();
        file.rewind().context(reading)?;
        file.take(STATE_BYTES_MAX).read_to_string(&mut text).context(reading)?;
        Self::decode(&text).context(reading)
    }
}

impl Kept {
    fn decode(inode: &str, access: &str, untuned: &str, note: &str) -> Result<Self> {
        let read_only = match access {
            "ro" => true,
            "rw" => false,
            _ => return Err(bad(&format!("{access:?} is no access"))),
        };
        let mut settings = Vec::new();
        for setting in untuned.split(',').filter(|_| untuned != NONE) {
            let (name, value) = setting.split_once('=').ok_or_else(|| bad("a setting has no value"))?;
            if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
                return Err(bad(&format!("{name:?} is no setting")));
            }
            settings.push((name.to_owned(), value.to_owned()));
        }
        let note = if note == NONE { Note::default() } else { Note::new(note)? };
        Ok(Self { inode: parse(inode)?, read_only, untuned: settings, note })
    }
}

fn parse<T: std::str::FromStr>(word: &str) -> Result<T> {
    word.parse().map_err(|_| bad(&format!("{word:?} is no number")))
}

fn bad(why: &str) -> Error {
    Error::corrupt(format!("it cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> State {
        let plain = Kept { inode: 16, read_only: false, untuned: Vec::new(), note: Note::default() };
        let full = Kept {
            inode: 17,
            read_only: true,
            untuned: vec![("nr_requests".to_owned(), "64".to_owned())],
            note: Note::new("4.1:0").unwrap(),
        };
        State {
            instance: "parallax-0123".to_owned(),
            write_bytes_max: 1 << 20,
            next_inode: 18,
            exports: [(ExportKey::new("a").unwrap(), plain), (ExportKey::new("b@3").unwrap(), full)].into(),
        }
    }

    #[test]
    fn the_next_daemon_reads_what_this_one_wrote() {
        assert_eq!(State::read(example().write().unwrap()).unwrap(), example());
    }

    #[test]
    fn what_is_not_understood_is_not_used() {
        let good = example().encode();
        for (from, to) in [
            ("parallax-exports 1", "parallax-exports 2"),
            ("next_inode 18", "next_inode 17"),
            ("next_inode 18", "next_inode many"),
            ("export a 16 rw - -", "export a 16 wr - -"),
            ("export a 16 rw - -", "export a 16 rw -"),
            ("export a", "export ../a"),
            ("nr_requests", "../nr_requests"),
            ("write_bytes_max 1048576\n", ""),
        ] {
            assert!(good.contains(from), "{from}");
            assert!(State::decode(&good.replace(from, to)).is_err(), "{to}");
        }
        assert!(State::decode("").is_err());
    }
}
