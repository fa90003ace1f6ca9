//! Which size a volume gets.
//!
//! Sizes are multiples of a block (4 KiB) and at least 1 MiB. `limit_bytes` is a promise: rounding up never
//! crosses it.

use crate::errors::Result;
use crate::proto::csi::CapacityRange;
use tonic::Status;

/// Sizes are multiples of this.
pub(crate) const GRANULARITY: u64 = 4096;
/// Small enough for a virtual machine's firmware variables.
pub(crate) const MIN_BYTES: u64 = 1 << 20;
/// Four radix levels.
pub(crate) const MAX_BYTES: u64 = 256 << 40;
/// For a claim that says nothing.
const DEFAULT_BYTES: u64 = 1 << 30;

/// A checked `CapacityRange`; ends that were left open are 0 and the largest size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    required: u64,
    limit: u64,
}

impl Range {
    pub(crate) fn parse(range: Option<&CapacityRange>) -> Result<Self> {
        let range = range.copied().unwrap_or_default();
        let (Ok(required), Ok(limit)) =
            (u64::try_from(range.required_bytes), u64::try_from(range.limit_bytes))
        else {
            return Err(Status::invalid_argument("capacity_range must not be negative"));
        };
        if limit != 0 && required > limit {
            return Err(Status::invalid_argument(format!(
                "capacity_range: {required} bytes are required, but at most {limit} allowed"
            )));
        }
        if required > MAX_BYTES {
            return Err(Status::out_of_range(format!(
                "{required} bytes were asked for; a volume can have at most {MAX_BYTES} (256 TiB)"
            )));
        }
        Ok(Self { required, limit: if limit == 0 { MAX_BYTES } else { limit } })
    }

    /// Size of a new volume; `source` is the size of what it starts from.
    pub(crate) fn choose(self, source: Option<u64>) -> Result<u64> {
        let wanted = match (self.required, source) {
            (0, Some(source)) => source,
            (0, None) => DEFAULT_BYTES.min(self.limit),
            (required, Some(source)) if required < source => {
                return Err(Status::out_of_range(format!(
                    "{required} bytes were asked for, but the source has {source}: a clone cannot be smaller"
                )));
            }
            (required, _) => required,
        };
        let size = if self.required == 0 && source.is_none() {
            (wanted - wanted % GRANULARITY).max(MIN_BYTES)
        } else {
            rounded(wanted)
        };
        self.refuse_above_limit(size)?;
        Ok(size)
    }

    /// Size to grow to from `current`; `None` if that is enough.
    pub(crate) fn grow(self, current: u64) -> Result<Option<u64>> {
        if self.required == 0 && self.limit == MAX_BYTES {
            return Err(Status::invalid_argument("capacity_range is missing"));
        }
        self.refuse_above_limit(current)?;
        let size = rounded(self.required);
        if self.required == 0 || size <= current {
            return Ok(None);
        }
        self.refuse_above_limit(size)?;
        Ok(Some(size))
    }

    /// Whether a volume of `size` satisfies it.
    pub(crate) fn holds(self, size: u64) -> bool {
        self.required <= size && size <= self.limit
    }

    fn refuse_above_limit(self, size: u64) -> Result<()> {
        if size <= self.limit {
            return Ok(());
        }
        Err(Status::out_of_range(format!(
            "the volume would have {size} bytes (multiples of {GRANULARITY}, at least {MIN_BYTES}), \
             but at most {} are allowed",
            self.limit
        )))
    }
}

fn rounded(bytes: u64) -> u64 {
    bytes.next_multiple_of(GRANULARITY).max(MIN_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn range(required: i64, limit: i64) -> Range {
        Range::parse(Some(&CapacityRange { required_bytes: required, limit_bytes: limit })).unwrap()
    }

    #[test]
    fn sizes_round_up_to_blocks_and_never_cross_the_limit() {
        assert_eq!(range(5_000_001, 0).choose(None).unwrap(), 5_001_216);
        assert_eq!(range(5_000_001, 5_001_216).choose(None).unwrap(), 5_001_216);
        assert_eq!(range(5_000_001, 5_000_100).choose(None).unwrap_err().code(), Code::OutOfRange);
        assert_eq!(range(1, 0).choose(None).unwrap(), MIN_BYTES);
        assert_eq!(range(1, 4096).choose(None).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn an_open_range_takes_the_default_or_the_source() {
        assert_eq!(range(0, 0).choose(None).unwrap(), DEFAULT_BYTES);
        assert_eq!(range(0, 10_000_000).choose(None).unwrap(), 9_998_336);
        assert_eq!(range(0, 0).choose(Some(7 << 20)).unwrap(), 7 << 20);
        assert_eq!(range(0, 1 << 20).choose(Some(7 << 20)).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn a_clone_may_be_larger_and_not_smaller() {
        assert_eq!(range(9 << 20, 0).choose(Some(7 << 20)).unwrap(), 9 << 20);
        assert_eq!(range(6 << 20, 0).choose(Some(7 << 20)).unwrap_err().code(), Code::OutOfRange);
    }

    #[test]
    fn nonsense_is_refused() {
        let parse = |required_bytes, limit_bytes| {
            Range::parse(Some(&CapacityRange { required_bytes, limit_bytes })).unwrap_err().code()
        };
        assert_eq!(parse(-1, 0), Code::InvalidArgument);
        assert_eq!(parse(2 << 20, 1 << 20), Code::InvalidArgument);
        assert_eq!(parse(i64::MAX, 0), Code::OutOfRange);
    }

    #[test]
    fn growing_keeps_what_is_large_enough() {
        assert_eq!(range(4 << 20, 0).grow(2 << 20).unwrap(), Some(4 << 20));
        assert_eq!(range(4 << 20, 0).grow(4 << 20).unwrap(), None);
        assert_eq!(range(4 << 20, 0).grow(8 << 20).unwrap(), None);
        assert_eq!(range(0, 4 << 20).grow(8 << 20).unwrap_err().code(), Code::OutOfRange);
        assert_eq!(range(0, 0).grow(8 << 20).unwrap_err().code(), Code::InvalidArgument);
    }
}
