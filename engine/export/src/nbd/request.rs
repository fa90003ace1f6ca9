//! What a client asks for, after checking.
//!
//! The order of checks is that of the protocol: command, flags, permission, range. A request that fails one is
//! answered; only what makes the stream unreadable closes the connection.

use super::wire::{Errno, UntrustedRequest, command, command_flag};
use parallax_block::{ByteRange, Geometry, ZeroOptions};

/// A command that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read(ByteRange),
    Write(ByteRange, Durable),
    Flush,
    Trim(ByteRange, Durable),
    Cache,
    WriteZeroes(ByteRange, ZeroOptions),
    BlockStatus(ByteRange, OneExtent),
}

/// Whether the effect must be on stable storage before the answer.
pub(super) type Durable = bool;
/// Whether the client wants the first extent only.
pub(super) type OneExtent = bool;

/// What an export allows, once negotiated.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) geometry: Geometry,
    pub(super) read_only: bool,
    /// The client has asked for `base:allocation`.
    pub(super) allocation: bool,
    pub(super) request_bytes_max: u32,
}

/// Why a request is refused: for the client.
pub(super) type Refusal = (Errno, &'static str);

impl Rules {
    /// Checks a request that is not a disconnect.
    pub(super) fn check(&self, request: &UntrustedRequest) -> Result<Command, Refusal> {
        let UntrustedRequest { flags, command, .. } = *request;
        let allowed = command_flag::FUA
            | match command {
                command::READ => command_flag::DONT_FRAGMENT,
                command::WRITE_ZEROES => command_flag::NO_HOLE,
                command::BLOCK_STATUS => command_flag::ONE_EXTENT,
                _ => 0,
            };
        if flags & !allowed != 0 {
            return Err((Errno::Invalid, "the command carries a flag that was not offered for it"));
        }
        let fua = flags & command_flag::FUA != 0;
        let writes = matches!(command, command::WRITE | command::TRIM | command::WRITE_ZEROES);
        if writes && self.read_only {
            return Err((Errno::NotPermitted, "the export is read-only"));
        }
        match command {
            command::READ => Ok(Command::Read(self.transfer(request)?)),
            command::WRITE => Ok(Command::Write(self.transfer(request)?, fua)),
            command::FLUSH => Ok(Command::Flush),
            command::TRIM => Ok(Command::Trim(self.range(request)?, fua)),
            command::CACHE => self.range(request).map(|_| Command::Cache),
            command::WRITE_ZEROES => {
                let unmap = flags & command_flag::NO_HOLE == 0;
                Ok(Command::WriteZeroes(self.range(request)?, ZeroOptions { unmap, fua }))
            }
            command::BLOCK_STATUS if self.allocation => {
                Ok(Command::BlockStatus(self.range(request)?, flags & command_flag::ONE_EXTENT != 0))
            }
            command::BLOCK_STATUS => {
                Err((Errno::Invalid, "block status needs base:allocation to be negotiated first"))
            }
            _ => Err((Errno::Invalid, "the command is not known to this server")),
        }
    }

    fn transfer(&self, request: &UntrustedRequest) -> Result<ByteRange, Refusal> {
        if request.length > self.request_bytes_max {
            return Err((Errno::TooLarge, "the request is longer than the maximum block size"));
        }
        self.range(request)
    }

    fn range(&self, request: &UntrustedRequest) -> Result<ByteRange, Refusal> {
        // What the protocol wants: a write past the end lacks space, everything else is wrong.
        let past_the_end = match request.command {
            command::WRITE | command::WRITE_ZEROES => Errno::NoSpace,
            _ => Errno::Invalid,
        };
        let beyond = (past_the_end, "the request ends past the end of the export");
        let range = ByteRange::new(request.offset, request.length.into()).map_err(|_| beyond)?;
        if range.is_empty() {
            return Err((Errno::Invalid, "the request is empty"));
        }
        if range.end() > self.geometry.capacity {
            return Err(beyond);
        }
        range
            .check(self.geometry.capacity, self.geometry.logical_block)
            .map_err(|_| (Errno::Invalid, "the request is not a multiple of the minimum block size"))?;
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CAPACITY: u64 = 1 << 20;

    fn rules() -> Rules {
        Rules {
            geometry: Geometry {
                capacity: CAPACITY,
                logical_block: 512,
                physical_block: 4096,
                discard_granularity: 4096,
                read_only: false,
            },
            read_only: false,
            allocation: true,
            request_bytes_max: 1 << 25,
        }
    }

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> UntrustedRequest {
        UntrustedRequest { flags, command, cookie: 0, offset, length }
    }

    #[test]
    fn refusals_carry_the_errors_of_the_protocol() {
        let rules = rules();
        let sealed = Rules { read_only: true, allocation: false, ..rules };
        let error = |rules: &Rules, request| rules.check(&request).unwrap_err().0;
        let end = CAPACITY;
        assert_eq!(error(&rules, request(command::READ, 0, end, 512)), Errno::Invalid);
        assert_eq!(error(&rules, request(command::WRITE, 0, end, 512)), Errno::NoSpace);
        assert_eq!(error(&rules, request(command::WRITE_ZEROES, 0, end - 512, 1024)), Errno::NoSpace);
        assert_eq!(error(&rules, request(command::TRIM, 0, end, 512)), Errno::Invalid);
        assert_eq!(error(&rules, request(command::READ, 0, u64::MAX, 512)), Errno::Invalid);
        assert_eq!(error(&rules, request(command::READ, 0, 0, 0)), Errno::Invalid);
        assert_eq!(error(&rules, request(command::READ, 0, 1, 512)), Errno::Invalid);
        assert_eq!(error(&rules, request(command::READ, 0, 0, (1 << 25) + 512)), Errno::TooLarge);
        assert_eq!(error(&rules, request(99, 0, 0, 512)), Errno::Invalid);
        // FAST_ZERO was never offered.
        assert_eq!(error(&rules, request(command::WRITE_ZEROES, 1 << 4, 0, 512)), Errno::Invalid);
        assert_eq!(error(&rules, request(command::READ, command_flag::NO_HOLE, 0, 512)), Errno::Invalid);
        for command in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(error(&sealed, request(command, 0, 0, 512)), Errno::NotPermitted);
        }
        assert_eq!(error(&sealed, request(command::BLOCK_STATUS, 0, 0, 512)), Errno::Invalid);
    }

    proptest! {
        #[test]
        fn whatever_is_allowed_lies_inside_the_export(
            flags: u16, command in 0u16..10, offset in prop_oneof![0..CAPACITY * 2, any::<u64>()], length: u32
        ) {
            if let Ok(Command::Read(range) | Command::Write(range, _) | Command::Trim(range, _)
                | Command::WriteZeroes(range, _) | Command::BlockStatus(range, _)) =
                rules().check(&request(command, flags, offset, length))
            {
                prop_assert!(range.check(CAPACITY, 512).is_ok());
                prop_assert_eq!(range.length(), u64::from(length));
            }
        }
    }
}
