//! What a person sees when a command fails: what happened, and the command to try next.

use parallax_api::client::ConnectError;
use std::fmt;
use tonic::{Code, Status};

/// Exit code of a command that failed.
pub(crate) const FAILED: u8 = 1;

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    next: Option<String>,
}

/// Outcome of a command.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// What happened.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), next: None }
    }

    /// With what to do about it, unless something better is known already.
    pub(crate) fn or_try(mut self, next: impl Into<String>) -> Self {
        if !self.advises() {
            self.next.get_or_insert_with(|| next.into());
        }
        self
    }

    /// Many messages of the engine name the next command themselves.
    fn advises(&self) -> bool {
        self.message.contains("`parallax ")
    }

    /// With what was being done.
    pub(crate) fn during(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// What happened, without advice.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub(crate) fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.next {
            Some(next) => write!(f, "\n  try: {next}"),
            None => Ok(()),
        }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let text = status.message();
        let message = if text.is_empty() { status.code().description().to_owned() } else { text.to_owned() };
        let next = match status.code() {
            Code::NotFound if text.contains("snapshot") => Some("parallax snap-list"),
            Code::NotFound => Some("parallax list"),
            Code::ResourceExhausted => Some("parallax gc; then parallax pool info shows what is free"),
            Code::DataLoss => Some("parallax check"),
            Code::FailedPrecondition if text.contains("in use: mounted") => None,
            Code::FailedPrecondition if text.contains("attached") => Some("parallax detach"),
            Code::AlreadyExists => Some("another name; parallax list --all shows those that are taken"),
            Code::Unavailable => Some("the same again; the daemon's log says more"),
            Code::DeadlineExceeded => Some("the same again; what was asked for may have happened"),
            _ => None,
        };
        match next {
            Some(next) => Self::new(message).or_try(next),
            None => Self::new(message),
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<parallax_block::Error> for Failure {
    fn from(error: parallax_block::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(format!("cannot write JSON: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_pool_leads_to_gc() {
        let text = Failure::from(Status::resource_exhausted("the pool is full")).to_string();
        assert_eq!(text, "the pool is full\n  try: parallax gc; then parallax pool info shows what is free");
    }

    #[test]
    fn advice_of_the_engine_is_not_doubled() {
        let failure = Failure::from(Status::not_found("'x' is not a volume id; `parallax list` shows them"));
        assert_eq!(failure.next(), None);
    }

    #[test]
    fn the_first_advice_stays() {
        let failure = Failure::from(Status::data_loss("bad checksum")).or_try("something else");
        assert_eq!(failure.next(), Some("parallax check"));
    }
}
