//! Draws edits: what turns a good input into a bad one.
//!
//! Numbers are where parsers go wrong, so most edits put a number of some width at some place: zero, the largest, the
//! ones beside a power of two, one more or less than what is there.

use crate::{Edit, Input, Seed, Value};
use proptest::{collection::vec, prelude::*, sample::Index};

/// Most edits of one input.
const EDITS: usize = 4;

/// An edit before it is known of which bytes.
#[derive(Debug, Clone)]
pub(crate) struct Draft {
    place: Index,
    anywhere: bool,
    change: Change,
}

#[derive(Debug, Clone)]
enum Change {
    Number { bytes: usize, high_first: bool, value: i128 },
    Add { bytes: usize, high_first: bool, by: i8 },
    Flip(u8),
    Bytes(Vec<u8>),
    Insert(Vec<u8>, usize),
    Delete(u16),
    Copy { from: Index, length: u8 },
    Cut,
}

/// Which base, which edits, whether it is sealed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) base: Index,
    pub(crate) drafts: Vec<Draft>,
    pub(crate) sealed: bool,
}

pub(crate) fn plans(seals: bool) -> impl Strategy<Value = Plan> {
    let sealed = if seals { prop::bool::weighted(0.95).boxed() } else { Just(false).boxed() };
    (any::<Index>(), vec(draft(), 1..=EDITS), sealed).prop_map(|(base, drafts, sealed)| Plan {
        base,
        drafts,
        sealed,
    })
}

fn draft() -> impl Strategy<Value = Draft> {
    (any::<Index>(), prop::bool::weighted(0.05), change()).prop_map(|(place, anywhere, change)| Draft {
        place,
        anywhere,
        change,
    })
}

fn change() -> impl Strategy<Value = Change> {
    let width = prop::sample::select(vec![1_usize, 2, 4, 4, 8, 8]);
    prop_oneof![
        6 => (width.clone(), any::<bool>(), interesting())
            .prop_map(|(bytes, high_first, value)| Change::Number { bytes, high_first, value }),
        3 => (width, any::<bool>(), -3_i8..=3)
            .prop_map(|(bytes, high_first, by)| Change::Add { bytes, high_first, by }),
        3 => (0_u8..8).prop_map(Change::Flip),
        2 => vec(any::<u8>(), 1..16).prop_map(Change::Bytes),
        1 => (vec(any::<u8>(), 1..8), prop::sample::select(vec![1_usize, 1, 1, 300, 5000]))
            .prop_map(|(bytes, times)| Change::Insert(bytes, times)),
        1 => any::<u16>().prop_map(|count| Change::Delete(count % 64 + 1)),
        2 => (any::<Index>(), 1_u8..64).prop_map(|(from, length)| Change::Copy { from, length }),
        1 => Just(Change::Cut),
    ]
}

/// Numbers that code forgets.
fn interesting() -> impl Strategy<Value = i128> {
    prop_oneof![
        2 => Just(0_i128),
        2 => Just(-1_i128),
        1 => Just(1_i128),
        4 => (0_u32..64, -1_i128..=1).prop_map(|(bit, beside)| (1_i128 << bit) + beside),
        1 => 0_i128..300,
    ]
}

impl Draft {
    /// The edits, for bytes that look like this now.
    fn settle(&self, bytes: &[u8], seed: Option<&Seed>, moves: bool) -> Vec<Edit> {
        let spots = seed.filter(|_| !self.anywhere).map(|seed| &seed.focus);
        let total = spots.map_or(0, |spots| spots.iter().map(ExactSizeIterator::len).sum());
        let place = if total > 0 {
            let mut left = self.place.index(total);
            let spot = spots.into_iter().flatten().find_map(|spot| {
                (left < spot.len()).then(|| spot.start + left).or_else(|| {
                    left -= spot.len();
                    None
                })
            });
            spot.unwrap_or(0).min(bytes.len())
        } else {
            self.place.index(bytes.len() + 1)
        };
        let number = |bytes, high_first, value: i128| {
            Edit::Put(Value::Number { bytes, high_first, value: value & ((1 << (8 * bytes)) - 1) })
        };
        let edit = match &self.change {
            Change::Number { bytes, high_first, value } => number(*bytes, *high_first, *value),
            Change::Add { bytes: width, high_first, by } => {
                let mut old = bytes.get(place..).unwrap_or(&[]).to_vec();
                old.resize(*width, 0);
                if *high_first {
                    old.reverse();
                }
                let old = old.iter().rev().fold(0_i128, |sum, byte| sum << 8 | i128::from(*byte));
                number(*width, *high_first, old + i128::from(*by))
            }
            Change::Flip(bit) => Edit::Xor(vec![1 << bit]),
            Change::Bytes(new) => Edit::Put(Value::Hex(new.clone())),
            Change::Insert(new, _) if !moves => Edit::Put(Value::Hex(new.clone())),
            Change::Delete(_) | Change::Cut if !moves => Edit::Xor(vec![1]),
            Change::Insert(new, 1) => Edit::Insert(Value::Hex(new.clone())),
            Change::Insert(new, times) => {
                Edit::Insert(Value::Times(Box::new(Value::Hex(new.clone())), *times))
            }
            Change::Delete(count) => Edit::Delete(usize::from(*count)),
            Change::Copy { from, length } if !bytes.is_empty() => {
                let from = from.index(bytes.len());
                let end = bytes.len().min(from + usize::from(*length));
                Edit::Put(Value::Hex(bytes[from..end].to_vec()))
            }
            Change::Copy { .. } | Change::Cut => Edit::Cut,
        };
        vec![Edit::Seek(place), edit]
    }
}

impl Plan {
    /// The input that comes of `base`, whose seed is `seed` with these bytes.
    pub(crate) fn settle(&self, base: &Input, seed: Option<&Seed>, moves: bool) -> Result<Input, String> {
        let from = seed.map_or(&[][..], |seed| &seed.bytes);
        let mut input = Input { sealed: base.sealed || self.sealed, ..base.clone() };
        let mut bytes = input.apply(from)?;
        for draft in &self.drafts {
            let edits = draft.settle(&bytes, seed, moves);
            let step = Input { edits: edits.clone(), ..Input::default() };
            bytes = step.apply(&bytes)?;
            input.edits.extend(edits);
        }
        Ok(input)
    }
}
