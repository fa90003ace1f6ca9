//! Payloads of handshake options, which come from strangers.
//!
//! Every parser takes bytes of any content and length and answers `None` for those that are malformed.

use zerocopy::{
    FromBytes, Immutable, KnownLayout, Unaligned,
    big_endian::{U16, U32},
};

/// Bytes of a string, at most, as the protocol has it.
pub(super) const STRING_MAX: usize = 4096;

/// What is left of a payload.
struct Payload<'a>(&'a [u8]);

impl<'a> Payload<'a> {
    fn take<T: FromBytes + KnownLayout + Immutable + Unaligned>(&mut self) -> Option<&'a T> {
        let (value, rest) = T::ref_from_prefix(self.0).ok()?;
        self.0 = rest;
        Some(value)
    }

    fn string(&mut self) -> Option<&'a str> {
        let length = self.take::<U32>()?.get() as usize;
        let (text, rest) = self.0.split_at_checked(length).filter(|_| length <= STRING_MAX)?;
        self.0 = rest;
        std::str::from_utf8(text).ok()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The name in an EXPORT_NAME option.
pub(super) fn export_name(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|name| name.len() <= STRING_MAX)
}

/// GO or INFO: which export, and what the client would like to know about it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Choice<'a> {
    pub(super) name: &'a str,
    pub(super) wanted: Vec<u16>,
}

impl<'a> Choice<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut payload = Payload(bytes);
        let name = payload.string()?;
        let count = payload.take::<U16>()?.get();
        let wanted =
            (0..count).map(|_| payload.take::<U16>().map(|kind| kind.get())).collect::<Option<_>>()?;
        payload.is_empty().then_some(Self { name, wanted })
    }
}

/// LIST_META_CONTEXT or SET_META_CONTEXT: which export, and which contexts.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Contexts<'a> {
    pub(super) name: &'a str,
    pub(super) queries: Vec<&'a str>,
}

impl<'a> Contexts<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut payload = Payload(bytes);
        let name = payload.string()?;
        let count = payload.take::<U32>()?.get();
        // Each query takes four bytes at least, so a lie about their number ends early.
        let queries = (0..count).map(|_| payload.string()).collect::<Option<_>>()?;
        payload.is_empty().then_some(Self { name, queries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_choice_is_a_name_and_a_list() {
        let bytes = b"\0\0\0\x02db\0\x02\0\x03\0\x01";
        assert_eq!(Choice::parse(bytes), Some(Choice { name: "db", wanted: vec![3, 1] }));
        assert_eq!(Choice::parse(&bytes[..bytes.len() - 1]), None, "too short");
        assert_eq!(Choice::parse(b"\0\0\0\x02db\0\0x"), None, "bytes left over");
        assert_eq!(Choice::parse(b"\0\0\0\x01\xff\0\0"), None, "not text");
        assert_eq!(Choice::parse(b"\xff\xff\xff\xffdb\0\0"), None, "longer than it is");
    }

    #[test]
    fn contexts_are_a_name_and_queries() {
        let bytes = b"\0\0\0\0\0\0\0\x01\0\0\0\x05base:";
        assert_eq!(Contexts::parse(bytes), Some(Contexts { name: "", queries: vec!["base:"] }));
        assert_eq!(Contexts::parse(b"\0\0\0\0\xff\xff\xff\xff"), None, "fewer queries than said");
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Choice::parse(&bytes), Contexts::parse(&bytes), export_name(&bytes));
        }

        #[test]
        fn small_numbers_reach_deep_into_the_parsers(
            bytes in proptest::collection::vec(prop_oneof![Just(0u8), 0u8..6], 0..64)
        ) {
            let _ = (Choice::parse(&bytes), Contexts::parse(&bytes));
        }
    }
}
