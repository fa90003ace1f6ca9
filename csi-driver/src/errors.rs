//! Which gRPC code says what.
//!
//! Kubernetes takes CANCELED, DEADLINE_EXCEEDED, UNAVAILABLE and ABORTED for "may still be happening": it asks
//! again before it gives up the object. Any other code means "definitely not done", and whatever was made is
//! leaked. So:
//! * a refusal that was decided before anything was touched keeps its own code;
//! * whatever broke on the way to the manager, or inside it, becomes UNAVAILABLE;
//! * what another operation is doing right now is ABORTED;
//! * INTERNAL and UNKNOWN are never sent.

use std::fmt::Display;
use tonic::{Code, Status};

/// Answers of the driver.
pub type Result<T> = std::result::Result<T, Status>;

/// An error of the manager or daemon, as an answer to our caller. `doing` says what was asked of it.
pub fn from_manager(doing: impl Display, error: &Status) -> Status {
    let code = match error.code() {
        code @ (Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange) => code,
        // DATA_LOSS included: damage found half way does not prove that nothing was done. The message says it.
        _ => Code::Unavailable,
    };
    Status::new(code, format!("{doing}: {}", message_of(error)))
}

/// A step on this machine that broke and may or may not have had an effect.
pub fn interrupted(doing: impl Display, error: impl Display) -> Status {
    Status::aborted(format!("{doing}: {error}"))
}

/// A second operation on something that has one under way.
pub fn pending(what: impl Display) -> Status {
    Status::aborted(format!("an operation on {what} is under way"))
}

/// A required field that was not sent.
pub fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing"))
}

/// A volume that does not exist, by the id that the caller sent.
pub fn no_volume(id: impl Display) -> Status {
    Status::not_found(format!("volume {id} does not exist"))
}

/// A snapshot that does not exist, by the id that the caller sent.
pub fn no_snapshot(id: impl Display) -> Status {
    Status::not_found(format!("snapshot {id} does not exist"))
}

/// What went wrong, for a person: a connection that failed says so before its reason.
pub(crate) fn message_of(error: &Status) -> String {
    let lost = error.code() == Code::Unavailable && std::error::Error::source(error).is_some();
    let text = reasons(error);
    if lost { format!("parallaxd cannot be reached: {text}") } else { text }
}

fn reasons(error: &Status) -> String {
    let mut text = match (error.code(), error.message()) {
        (code, "") => code.description().to_owned(),
        (Code::DataLoss, message) => format!("damage: {message}"),
        (_, message) => message.to_owned(),
    };
    // A transport error tells its reason only in its sources.
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_happened_is_never_reported_as_definitely_failed() {
        for code in 1..=16 {
            let ours = from_manager("creating", &Status::new(Code::from_i32(code), "why")).code();
            assert!(
                !matches!(ours, Code::Internal | Code::Unknown | Code::DataLoss),
                "{code} became {ours:?}"
            );
        }
        let ambiguous = [
            Code::Internal,
            Code::Unknown,
            Code::DataLoss,
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Unavailable,
        ];
        for code in ambiguous {
            assert_eq!(from_manager("creating", &Status::new(code, "why")).code(), Code::Unavailable);
        }
    }

    #[test]
    fn a_lost_connection_is_told_from_an_answer() {
        let missing = std::io::Error::from_raw_os_error(2);
        let mut lost = Status::unavailable("error trying to connect");
        lost.set_source(std::sync::Arc::new(missing));
        let status = from_manager("attaching volume x", &lost);
        assert!(
            status.message().starts_with("attaching volume x: parallaxd cannot be reached: "),
            "{status}"
        );
        assert!(status.message().contains("No such file"), "{status}");
        assert_eq!(from_manager("doing", &Status::unavailable("stopping")).message(), "doing: stopping");
    }

    #[test]
    fn refusals_keep_their_code_and_their_words() {
        let status =
            from_manager("deleting volume x", &Status::failed_precondition("it is attached to node-1"));
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!(status.message(), "deleting volume x: it is attached to node-1");
    }
}
