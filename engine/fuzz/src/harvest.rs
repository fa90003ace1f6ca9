//! Which of the inputs that were made are worth keeping: those refused in words that no kept one of the same seed has.

use crate::{Corpus, Edit, Entry, Input, Outcome, Target, guard::Turn};
use std::collections::{BTreeMap, BTreeSet};

/// Kept inputs of one seed with the same words.
const ALIKE: usize = 2;

/// Words of an outcome that make the name of an input.
const NAME_WORDS: usize = 8;

pub(crate) struct Harvest {
    seen: BTreeMap<String, usize>,
    names: BTreeSet<String>,
    inputs: BTreeSet<String>,
    /// What it found.
    pub(crate) new: Vec<Entry>,
}

/// What tells two outcomes apart: their words, whatever the numbers.
fn words(input: &Input, outcome: &str) -> String {
    let letters: String = outcome.chars().filter(|letter| !letter.is_ascii_hexdigit()).collect();
    format!("{:?} {letters}", input.base)
}

impl Harvest {
    pub(crate) fn new(corpus: &Corpus) -> Self {
        let mut seen = BTreeMap::new();
        for entry in &corpus.entries {
            *seen.entry(words(&entry.input, &entry.outcome)).or_default() += 1;
        }
        let inputs = corpus.entries.iter().map(|entry| entry.input.to_string()).collect();
        let names = corpus.entries.iter().map(|entry| entry.name.clone()).collect();
        Self { seen, names, inputs, new: Vec::new() }
    }

    /// Takes `input` if its outcome is new, without the edits that do not matter.
    pub(crate) fn offer(&mut self, target: &Target<'_>, turn: &Turn, input: &Input, outcome: &Outcome) {
        let Outcome::Refused(_) = outcome else { return };
        let count = self.seen.entry(words(input, &outcome.to_string())).or_default();
        if *count >= ALIKE {
            return;
        }
        *count += 1;
        let mut input = input.clone();
        let mut at = input.edits.len();
        while at > 0 {
            at -= 1;
            let mut fewer = input.clone();
            fewer.edits.remove(at);
            if !matches!(input.edits[at], Edit::Seek(_))
                && at > 0
                && matches!(input.edits[at - 1], Edit::Seek(_))
            {
                at -= 1;
                fewer.edits.remove(at);
            }
            if target.tried(turn, &fewer).as_ref() == Ok(outcome) {
                input = fewer;
            }
        }
        if !self.inputs.insert(input.to_string()) {
            return;
        }
        let name = self.name(&outcome.to_string());
        self.new.push(Entry { notes: Vec::new(), name, input, outcome: outcome.to_string() });
    }

    /// A name that nobody has, of the words of an outcome.
    fn name(&mut self, outcome: &str) -> String {
        let words = outcome.split(|letter: char| !letter.is_ascii_alphabetic());
        let words: Vec<&str> = words.filter(|word| word.len() > 1).take(NAME_WORDS).collect();
        let stem = words.join("-").to_lowercase();
        let names = [String::new()].into_iter().chain((2..).map(|number| format!("-{number}")));
        let name = names.map(|tail| format!("{stem}{tail}")).find(|name| !self.names.contains(name));
        let name = name.expect("there are more numbers than names");
        self.names.insert(name.clone());
        name
    }
}
