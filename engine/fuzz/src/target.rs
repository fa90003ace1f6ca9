//! What is tried, with which valid inputs, under which bounds.

use std::{fmt, ops::Range, path::PathBuf, time::Duration};

/// What one input may cost.
#[derive(Debug, Clone, Copy)]
pub struct Bound {
    /// Bytes of memory that are held at the same time, beyond what was held before.
    pub memory: usize,
    /// Time from the first byte to the outcome. It is there to find what never ends, on a machine that is busy.
    pub time: Duration,
}

/// What came of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It was taken for a good one.
    Accepted,
    /// It was refused, in words for a person.
    Refused(String),
}

impl Outcome {
    /// The outcome of a function that fails with an error that can be printed.
    pub fn of<T, E: fmt::Display>(result: Result<T, E>) -> Self {
        match result {
            Ok(_) => Self::Accepted,
            Err(error) => Self::Refused(error.to_string()),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("accepted"),
            // One line, whatever the words: a corpus file has one line for each outcome.
            Self::Refused(words) => words.trim().chars().try_for_each(|letter| match letter {
                letter if letter.is_control() => write!(f, "{}", letter.escape_default()),
                letter => write!(f, "{letter}"),
            }),
        }
    }
}

/// A valid input, from which bad ones are made.
#[derive(Debug, Clone)]
pub struct Seed {
    /// What inputs call it: `base:NAME`.
    pub name: &'static str,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where edits are worth most: the rest is padding.
    pub focus: Vec<Range<usize>>,
}

impl Seed {
    /// A seed all of whose bytes matter.
    pub fn new(name: &'static str, bytes: Vec<u8>) -> Self {
        let all = 0..bytes.len();
        Self::within(name, bytes, all)
    }

    /// A seed of which one part matters.
    pub fn within(name: &'static str, bytes: Vec<u8>, part: Range<usize>) -> Self {
        Self { name, bytes, focus: std::iter::once(part).collect() }
    }
}

/// Makes the checksums of edited bytes match again: given the seed and the edited bytes.
pub type Sealer<'a> = Box<dyn Fn(&[u8], &mut Vec<u8>) + 'a>;

/// Gives an input to the code under test, and tells what came of it.
pub type Runner<'a> = Box<dyn Fn(&[u8]) -> Outcome + 'a>;

/// Something that takes bytes from outside.
pub struct Target<'a> {
    /// Names the corpus file.
    pub name: &'static str,
    /// Where it is.
    pub folder: PathBuf,
    /// Valid inputs. Each must be accepted.
    pub seeds: Vec<Seed>,
    /// Whether edits may insert and remove bytes; not where everything has its place.
    pub moves: bool,
    /// For inputs that end with `seal`.
    pub seal: Option<Sealer<'a>>,
    /// What an input may cost.
    pub bound: Bound,
    /// Inputs that [`crate::explore`] makes in a test run.
    pub cases: u32,
    /// Panics if a promise of the code under test is broken.
    pub run: Runner<'a>,
}

impl Target<'_> {
    /// The seed of that name.
    pub(crate) fn seed(&self, name: &str) -> Result<&Seed, String> {
        self.seeds
            .iter()
            .find(|seed| seed.name == name)
            .ok_or_else(|| format!("{} has no seed {name}", self.name))
    }

    /// The file of its corpus.
    pub fn corpus(&self) -> PathBuf {
        self.folder.join(format!("{}.txt", self.name))
    }
}
