//! A cursor over bytes: little-endian fields in order, never past the end.

use parallax_block::{Error, Result};

/// No pool ever counts so far: whatever is added to a count that was read stays a number.
pub const COUNT_MAX: u64 = 1 << 62;

/// The same for counts of four bytes.
pub const SHORT_COUNT_MAX: u32 = 1 << 30;

/// Appends fields.
#[derive(Debug, Default)]
pub struct Writer(pub Vec<u8>);

impl Writer {
    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    /// Two bytes.
    pub fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Four bytes.
    pub fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Eight bytes.
    pub fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Eight bytes, signed.
    pub fn i64(&mut self, value: i64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Sixteen bytes.
    pub fn u128(&mut self, value: u128) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
    /// A length in two bytes, then the text. Texts longer than 65,535 bytes are a bug of the caller.
    pub fn text(&mut self, text: &str) {
        debug_assert!(text.len() <= usize::from(u16::MAX), "texts are bounded before they get here");
        self.u16(text.len() as u16);
        self.raw(text.as_bytes());
    }
}

/// Takes fields from untrusted bytes.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which `what` names in errors.
    pub fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    /// Bytes that are left.
    pub fn remaining(&self) -> usize {
        self.bytes.len()
    }

    /// The next `length` bytes.
    pub fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        if length > self.bytes.len() {
            return Err(Error::corrupt(format!("{} ends too early", self.what)));
        }
        let (head, tail) = self.bytes.split_at(length);
        self.bytes = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let what = self.what;
        self.take(N)?.try_into().map_err(|_| Error::corrupt(format!("{what} ends too early")))
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }
    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    /// A count: eight bytes, at most [`COUNT_MAX`].
    pub fn count(&mut self) -> Result<u64> {
        let count = self.u64()?;
        self.within(count, COUNT_MAX)
    }
    /// A count: four bytes, at most [`SHORT_COUNT_MAX`].
    pub fn short_count(&mut self) -> Result<u32> {
        let count = self.u32()?;
        self.within(u64::from(count), u64::from(SHORT_COUNT_MAX)).map(|_| count)
    }
    /// Refuses a number above `limit`.
    pub fn within(&self, number: u64, limit: u64) -> Result<u64> {
        if number > limit {
            return Err(Error::corrupt(format!(
                "{} counts to {number:#x}, which no pool reaches",
                self.what
            )));
        }
        Ok(number)
    }
    /// Eight bytes, signed.
    pub fn i64(&mut self) -> Result<i64> {
        Ok(i64::from_le_bytes(self.array()?))
    }
    /// Sixteen bytes.
    pub fn u128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }
    /// A text written by [`Writer::text`].
    pub fn text(&mut self) -> Result<String> {
        let length = usize::from(self.u16()?);
        let what = self.what;
        String::from_utf8(self.take(length)?.to_vec())
            .map_err(|e| Error::corrupt(format!("{what} holds text that is not UTF-8")).with_source(e))
    }
}
