//! What a person at the terminal sees: one line per step, with the seconds it took.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Wraps `text` in an ANSI style when a person is watching.
fn styled(style: &str, text: impl Display) -> String {
    if std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() {
        format!("\x1b[{style}m{text}\x1b[0m")
    } else {
        text.to_string()
    }
}

/// Bold, for headings.
pub fn bold(text: impl Display) -> String {
    styled("1", text)
}

/// Dim, for what is only context.
pub fn dim(text: impl Display) -> String {
    styled("2", text)
}

/// Green, for what succeeded.
pub fn good(text: impl Display) -> String {
    styled("32", text)
}

/// Red, for what failed.
pub fn bad(text: impl Display) -> String {
    styled("31", text)
}

/// Announces a step and runs it; the line after it tells the outcome and the time.
pub fn step<T>(what: impl Display, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    println!("{} {what}", dim("▸"));
    let begun = Instant::now();
    let outcome = work();
    let took = seconds(begun.elapsed());
    match &outcome {
        Ok(_) => println!("{} {what} {}", good("✓"), dim(took)),
        Err(_) => println!("{} {what} {}", bad("✗"), dim(took)),
    }
    outcome
}

/// One line of context below a step.
pub fn note(text: impl Display) {
    println!("  {}", dim(text));
}

/// The end of a failed verb: the error and each of its causes.
pub fn failure(error: &anyhow::Error) {
    eprintln!("{} {error}", bad("error:"));
    for cause in error.chain().skip(1) {
        eprintln!("  because {cause}");
    }
}

/// `12.3 s`, or `4 min 05 s` when it was long.
pub fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 100 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}
