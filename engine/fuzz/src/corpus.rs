//! The inputs of one target that are kept, each with a name and with what must come of it.
//!
//! ```text
//! # a comment
//! name-of-the-input
//!   base:superblock @84 l32:0 seal
//!   => the superblock's geometry is out of range
//! ```
//!
//! `=> ?` stands for an outcome that nobody has seen yet: `FUZZ=write` fills it in.

use crate::Input;
use std::{collections::BTreeSet, fmt::Write, fs, io, path::Path};

/// An outcome that is not known yet.
pub(crate) const UNKNOWN: &str = "?";

/// One kept input.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Comment lines before it.
    pub notes: Vec<String>,
    /// Unique in its file.
    pub name: String,
    /// The input.
    pub input: Input,
    /// What must come of it, as [`crate::Outcome`] prints it.
    pub outcome: String,
}

/// A corpus file.
#[derive(Debug, Clone, Default)]
pub struct Corpus {
    /// In the order of the file.
    pub entries: Vec<Entry>,
}

impl Corpus {
    /// Reads a file; one that is not there is empty.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Self::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut corpus = Self::default();
        let mut names = BTreeSet::new();
        let mut notes = Vec::new();
        let mut lines = text.lines().filter(|line| !line.trim().is_empty());
        while let Some(name) = lines.next() {
            if name.starts_with('#') {
                notes.push(name.to_owned());
                continue;
            }
            let lacks = |what: &str| format!("{name} lacks {what}");
            if name.starts_with(' ') || !names.insert(name.to_owned()) {
                return Err(format!("`{name}` is no new name"));
            }
            let input =
                lines.next().filter(|line| line.starts_with(' ')).ok_or_else(|| lacks("its input"))?;
            let outcome = lines.next().and_then(|line| line.trim().strip_prefix("=>"));
            corpus.entries.push(Entry {
                notes: std::mem::take(&mut notes),
                name: name.to_owned(),
                input: Input::parse(input).map_err(|error| format!("{name}: {error}"))?,
                outcome: outcome.ok_or_else(|| lacks("its outcome"))?.trim().to_owned(),
            });
        }
        Ok(corpus)
    }

    /// The file.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        fs::write(path, self.render())
    }

    fn render(&self) -> String {
        let mut text = String::new();
        for entry in &self.entries {
            for note in &entry.notes {
                writeln!(text, "{note}").expect("a string takes everything");
            }
            writeln!(text, "{}\n  {}\n  => {}", entry.name, entry.input, entry.outcome)
                .expect("a string takes everything");
        }
        text
    }

    /// Adds an input whose outcome is not known; returns its name.
    pub fn keep(&mut self, input: Input, note: &str) -> String {
        let number = (1..).find(|number| {
            let name = format!("found-{number}");
            self.entries.iter().all(|entry| entry.name != name)
        });
        let name = format!("found-{}", number.expect("there are more numbers than entries"));
        let notes = note.lines().map(|line| format!("# {line}")).collect();
        self.entries.push(Entry { notes, name: name.clone(), input, outcome: UNKNOWN.into() });
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_reads_back_as_it_was_written() {
        let text = "# why\nfirst\n  base:node @3 ff seal\n  => it is bad\nsecond\n  00\n  => ?\n";
        assert_eq!(Corpus::parse(text).unwrap().render(), text);
    }

    #[test]
    fn every_input_has_a_name_of_its_own_and_an_outcome() {
        for text in ["a\n 00\n => x\na\n 00\n => x\n", "a\n 00\n", "a\n => x\n", " 00\n => x\n"] {
            assert!(Corpus::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_found_input_gets_the_next_free_name() {
        let mut corpus = Corpus::parse("found-1\n 00\n => x\n").unwrap();
        assert_eq!(corpus.keep(Input::parse("01").unwrap(), "panicked"), "found-2");
    }
}
