//! The NBD server, judged by other people's clients, and tried by hostile ones.

#![forbid(unsafe_code)]

mod bed;
mod hostile;
mod life;
mod tools;
