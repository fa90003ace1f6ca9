//! What the program can be asked to do.

pub(crate) mod damage;
pub(crate) mod enumerate;
pub(crate) mod long;
pub(crate) mod mutants;
pub(crate) mod seeds;
