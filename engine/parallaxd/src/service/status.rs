//! Errors of the engine as gRPC codes, by the table at the head of the protocol.

use parallax_block::{Error, ErrorKind};
use tonic::{Code, Status};

/// Bytes of an error's words at most. They travel in a header, and one that is too long ends the whole connection.
const WORDS_MAX: usize = 2048;

/// The status that a caller gets for an error.
pub fn to_status(error: Error) -> Status {
    let mut words = error.to_string();
    if words.len() > WORDS_MAX {
        words.truncate(words.floor_char_boundary(WORDS_MAX));
        words.push_str(" ...");
    }
    Status::new(code(error.kind()), words)
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::OutOfSpace | ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Busy | ErrorKind::ReadOnly | ErrorKind::FailedPrecondition | ErrorKind::Incompatible => {
            Code::FailedPrecondition
        }
        ErrorKind::Unsupported => Code::Unimplemented,
        // It may have taken effect, and asking again finds out: never INTERNAL, which some callers take for final.
        ErrorKind::Io | ErrorKind::Fenced | ErrorKind::Cancelled => Code::Unavailable,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_happened_is_never_internal() {
        for kind in [ErrorKind::Io, ErrorKind::Fenced, ErrorKind::Cancelled] {
            assert_eq!(to_status(Error::new(kind, "x")).code(), Code::Unavailable);
        }
    }

    /// A name of 7 MB was repeated in the refusal. gRPC sends those words in a header, HTTP/2 bounds headers, and the
    /// caller saw its connection end with a protocol error instead of the reason.
    #[test]
    fn a_refusal_of_something_long_is_short() {
        let status = to_status(Error::invalid(format!("'{}' is too long", "é".repeat(4_000_000))));
        assert!(status.message().len() < 3000, "{} bytes", status.message().len());
        assert!(status.message().ends_with(" ..."));
    }

    #[test]
    fn damage_and_fullness_have_codes_of_their_own() {
        let status = to_status(Error::corrupt("bad checksum").context("volume db"));
        assert_eq!((status.code(), status.message()), (Code::DataLoss, "volume db: bad checksum"));
        assert_eq!(to_status(Error::new(ErrorKind::OutOfSpace, "full")).code(), Code::ResourceExhausted);
    }
}
