//! A notation for bytes: what a bad input is made of, in text.
//!
//! An input is a row of words. A cursor begins at 0; values overwrite what is there and append at the end.
//!
//! ```text
//! base:NAME     begin with a copy of the seed NAME (first word)
//! @N  @end      move the cursor
//! VALUE         put bytes, and move behind them
//! +VALUE        insert them instead
//! ^HEX          exclusive or
//! del:N  cut    remove N bytes, or all, from the cursor on
//! seal          make checksums match at last (last word)
//!
//! VALUE is      00ff17                     bytes
//!               "text\n\0\\\""  "\xff"     text
//!               l16:5 l32:5 l64:-1         numbers, the low byte first
//!               b16:5 b32:5 b64:-1         numbers, the high byte first
//!               v:300                      number as a protobuf varint
//!               7=VALUE                    protobuf field 7: a varint, fixed, or bytes behind their length
//!               ( VALUE VALUE )            one after the other
//!               VALUE*1000                 again and again; 7=VALUE*9 is one field, ( 7=VALUE )*9 are nine
//! ```

use std::fmt::{self, Write};

/// Inputs are never longer: a bound on what a corpus file can ask for.
const BYTES_MAX: usize = 64 << 20;

/// Parentheses in parentheses.
const DEPTH_MAX: usize = 64;

/// Some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "see the module")]
pub enum Value {
    Hex(Vec<u8>),
    Text(Vec<u8>),
    Number { high_first: bool, bytes: usize, value: i128 },
    Varint(i128),
    Field(u32, Box<Value>),
    Row(Vec<Value>),
    Times(Box<Value>, usize),
}

/// A word of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "see the module")]
pub enum Edit {
    Seek(usize),
    End,
    Put(Value),
    Insert(Value),
    Xor(Vec<u8>),
    Delete(usize),
    Cut,
}

/// See the module.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Input {
    /// The seed.
    pub base: Option<String>,
    /// What is done to it.
    pub edits: Vec<Edit>,
    /// Whether checksums are made to match.
    pub sealed: bool,
}

impl Input {
    /// Reads the notation.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut words = Words { rest: text.trim() };
        let mut input = Self::default();
        let mut first = true;
        while let Some(word) = words.next()? {
            if input.sealed {
                return Err("nothing follows `seal`".into());
            }
            match word {
                "seal" => input.sealed = true,
                "cut" => input.edits.push(Edit::Cut),
                "@end" => input.edits.push(Edit::End),
                _ => {
                    let edit = if let Some(name) = word.strip_prefix("base:") {
                        if !first {
                            return Err("`base:` is the first word".into());
                        }
                        input.base = Some(name.to_owned());
                        first = false;
                        continue;
                    } else if let Some(at) = word.strip_prefix('@') {
                        Edit::Seek(number(at)?)
                    } else if let Some(count) = word.strip_prefix("del:") {
                        Edit::Delete(number(count)?)
                    } else if let Some(bits) = word.strip_prefix('^') {
                        Edit::Xor(hex(bits)?)
                    } else if let Some(value) = word.strip_prefix('+') {
                        Edit::Insert(Value::parse(value, 0)?)
                    } else {
                        Edit::Put(Value::parse(word, 0)?)
                    };
                    input.edits.push(edit);
                }
            }
            first = false;
        }
        Ok(input)
    }

    /// The bytes, before they are sealed, made from the bytes of the base.
    pub fn apply(&self, base: &[u8]) -> Result<Vec<u8>, String> {
        let (mut bytes, mut at) = (base.to_vec(), 0);
        for edit in &self.edits {
            match edit {
                Edit::Seek(to) if *to > bytes.len() => {
                    return Err(format!("@{to} is beyond the end, {}", bytes.len()));
                }
                Edit::Seek(to) => at = *to,
                Edit::End => at = bytes.len(),
                Edit::Put(value) => {
                    let new = value.bytes()?;
                    let end = bytes.len().min(at + new.len());
                    bytes.splice(at..end, new.iter().copied());
                    at += new.len();
                }
                Edit::Insert(value) => {
                    let new = value.bytes()?;
                    bytes.splice(at..at, new.iter().copied());
                    at += new.len();
                }
                Edit::Xor(bits) => {
                    bytes[at..].iter_mut().zip(bits).for_each(|(byte, bit)| *byte ^= bit);
                    at = bytes.len().min(at + bits.len());
                }
                Edit::Delete(count) => {
                    let end = bytes.len().min(at.saturating_add(*count));
                    bytes.drain(at..end);
                }
                Edit::Cut => bytes.truncate(at),
            }
            bounded(bytes.len())?;
        }
        Ok(bytes)
    }
}

impl fmt::Display for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base.iter().map(|name| format!("base:{name}"));
        let words = base.chain(self.edits.iter().map(Edit::to_string));
        let words: Vec<String> = words.chain(self.sealed.then(|| "seal".to_owned())).collect();
        // A line of a corpus is never empty.
        f.write_str(if words.is_empty() { "\"\"" } else { "" })?;
        f.write_str(&words.join(" "))
    }
}

impl fmt::Display for Edit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Seek(at) => write!(f, "@{at}"),
            Self::End => f.write_str("@end"),
            Self::Put(value) => value.fmt(f),
            Self::Insert(value) => write!(f, "+{value}"),
            Self::Xor(bits) => write!(f, "^{}", Value::Hex(bits.clone())),
            Self::Delete(count) => write!(f, "del:{count}"),
            Self::Cut => f.write_str("cut"),
        }
    }
}

impl Value {
    fn parse(word: &str, depth: usize) -> Result<Self, String> {
        if depth > DEPTH_MAX {
            return Err("too many parentheses".into());
        }
        if let Some((field, value)) = word.split_once('=')
            && field.bytes().all(|digit| digit.is_ascii_digit())
        {
            return Ok(Self::Field(number(field)? as u32, Box::new(Self::parse(value, depth + 1)?)));
        }
        let closed = word.ends_with(['"', ')']);
        if let Some((value, count)) = word.rsplit_once('*').filter(|_| !closed) {
            return Ok(Self::Times(Box::new(Self::parse(value, depth + 1)?), number(count)?));
        }
        if let Some(inside) = word.strip_prefix('(') {
            let inside = inside.strip_suffix(')').ok_or_else(|| format!("{word} lacks `)`"))?;
            let mut words = Words { rest: inside.trim() };
            let mut row = Vec::new();
            while let Some(word) = words.next()? {
                row.push(Self::parse(word, depth + 1)?);
            }
            return Ok(Self::Row(row));
        }
        if let Some(inside) = word.strip_prefix('"') {
            return Ok(Self::Text(unescape(inside.strip_suffix('"').unwrap_or(inside))?));
        }
        let Some((kind, value)) = word.split_once(':') else { return Ok(Self::Hex(hex(word)?)) };
        let value = signed(value)?;
        let bits = kind.get(1..).and_then(|bits| bits.parse::<usize>().ok());
        match (kind.as_bytes().first(), bits) {
            (Some(b'v'), None) => Ok(Self::Varint(value)),
            (Some(order @ (b'l' | b'b')), Some(bits @ (8 | 16 | 32 | 64 | 128))) => {
                Ok(Self::Number { high_first: *order == b'b', bytes: bits / 8, value })
            }
            _ => Err(format!("{word} is no value")),
        }
    }

    /// What it stands for.
    pub fn bytes(&self) -> Result<Vec<u8>, String> {
        let bytes = match self {
            Self::Hex(bytes) | Self::Text(bytes) => bytes.clone(),
            Self::Number { high_first, bytes, value } => {
                let mut out = value.to_le_bytes()[..*bytes].to_vec();
                if *high_first {
                    out.reverse();
                }
                out
            }
            Self::Varint(value) => varint(*value as u64),
            Self::Field(number, value) => {
                let content = value.bytes()?;
                let (kind, length) = match **value {
                    Self::Varint(_) => (0, None),
                    Self::Number { bytes: 8, .. } => (1, None),
                    Self::Number { bytes: 4, .. } => (5, None),
                    _ => (2, Some(varint(content.len() as u64))),
                };
                let tag = varint(u64::from(*number) << 3 | kind);
                [tag, length.unwrap_or_default(), content].concat()
            }
            Self::Row(values) => {
                let mut out = Vec::new();
                for value in values {
                    out.extend(value.bytes()?);
                    bounded(out.len())?;
                }
                out
            }
            Self::Times(value, count) => {
                let once = value.bytes()?;
                bounded(once.len().saturating_mul(*count))?;
                once.repeat(*count)
            }
        };
        bounded(bytes.len())?;
        Ok(bytes)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hex(bytes) => bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")),
            Self::Text(bytes) => {
                f.write_char('"')?;
                for byte in bytes {
                    match byte {
                        b'"' | b'\\' => write!(f, "\\{}", char::from(*byte))?,
                        b'\n' => f.write_str("\\n")?,
                        b' '..=b'~' => f.write_char(char::from(*byte))?,
                        _ => write!(f, "\\x{byte:02x}")?,
                    }
                }
                f.write_char('"')
            }
            Self::Number { high_first, bytes, value } => {
                write!(f, "{}{}:", if *high_first { 'b' } else { 'l' }, bytes * 8)?;
                if *value > 0xffff { write!(f, "{value:#x}") } else { value.fmt(f) }
            }
            Self::Varint(value) => write!(f, "v:{value}"),
            Self::Field(number, value) => write!(f, "{number}={value}"),
            Self::Row(values) => {
                f.write_char('(')?;
                values.iter().try_for_each(|value| write!(f, " {value}"))?;
                f.write_str(" )")
            }
            Self::Times(value, count) => write!(f, "{value}*{count}"),
        }
    }
}

/// Splits at blanks that are not inside quotes or parentheses.
struct Words<'a> {
    rest: &'a str,
}

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<Option<&'a str>, String> {
        self.rest = self.rest.trim_start();
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (mut depth, mut quoted, mut escaped) = (0_usize, false, false);
        for (at, letter) in self.rest.char_indices() {
            match letter {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ if quoted => {}
                '(' => depth += 1,
                ')' => depth = depth.checked_sub(1).ok_or("a `)` without its `(`")?,
                _ if letter.is_whitespace() && depth == 0 => {
                    let (word, rest) = self.rest.split_at(at);
                    self.rest = rest;
                    return Ok(Some(word));
                }
                _ => {}
            }
        }
        if quoted || depth > 0 {
            return Err(format!("`{}` is not closed", self.rest));
        }
        Ok(Some(std::mem::take(&mut self.rest)))
    }
}

fn bounded(length: usize) -> Result<(), String> {
    if length > BYTES_MAX { Err(format!("{length} bytes are more than {BYTES_MAX}")) } else { Ok(()) }
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn signed(text: &str) -> Result<i128, String> {
    let (minus, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
    let value = match digits.strip_prefix("0x") {
        Some(digits) => i128::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    let value = value.map_err(|_| format!("{text} is no number"))?;
    Ok(if minus { -value } else { value })
}

fn number(text: &str) -> Result<usize, String> {
    usize::try_from(signed(text)?).map_err(|_| format!("{text} is out of range"))
}

fn hex(text: &str) -> Result<Vec<u8>, String> {
    let fail = || format!("{text} is no row of bytes");
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return Err(fail());
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| fail());
    (0..text.len()).step_by(2).map(byte).collect()
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte != b'\\' {
            out.push(*byte);
            continue;
        }
        let [letter, after @ ..] = rest else { return Err("a text ends in `\\`".into()) };
        rest = after;
        out.push(match letter {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'0' => 0,
            b'x' => {
                let (digits, after) = rest.split_at_checked(2).ok_or("`\\x` needs two digits")?;
                rest = after;
                hex(std::str::from_utf8(digits).map_err(|_| "`\\x` needs two digits")?)?[0]
            }
            other => *other,
        });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str, base: &[u8]) -> Vec<u8> {
        Input::parse(text).unwrap().apply(base).unwrap()
    }

    #[test]
    fn every_word_does_what_its_line_says() {
        assert_eq!(made("base:x @2 ffee @end 01", b"abcdef"), b"ab\xff\xeeef\x01");
        assert_eq!(made("@1 +\"XY\" ^20", b"abc"), b"aXYBc");
        assert_eq!(made("@1 del:2", b"abcd"), b"ad");
        assert_eq!(made("@1 cut", b"abcd"), b"a");
        assert_eq!(made("l16:258 b16:258 l32:-1 v:300", b""), b"\x02\x01\x01\x02\xff\xff\xff\xff\xac\x02");
        assert_eq!(made("\"a b\\0\\x7f\\\"\\\\\"", b""), b"a b\0\x7f\"\\");
        assert_eq!(made("( \"ab\" 00 )*2 \"c\"*3", b""), b"ab\0ab\0ccc");
    }

    #[test]
    fn fields_are_those_of_protobuf() {
        assert_eq!(made("1=v:150 2=\"hi\" 3=( 1=v:-1 )", b""), {
            let mut bytes = b"\x08\x96\x01\x12\x02hi\x1a\x0b\x08".to_vec();
            bytes.extend([0xff; 9]);
            bytes.push(1);
            bytes
        });
        assert_eq!(made("1=l64:1 2=l32:1", b""), b"\x09\x01\0\0\0\0\0\0\0\x15\x01\0\0\0");
        assert_eq!(made("1=\"x\"*3", b""), b"\x0a\x03xxx");
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "base:node @7 ff @end \"a\\x00b\\n\" +l64:-1 ^80 del:3 cut seal",
            "1=( 2=\"a\"*7 3=v:-1 4=( 5=ab*2 ) ) b16:7",
        ] {
            let input = Input::parse(text).unwrap();
            assert_eq!(Input::parse(&input.to_string()).unwrap(), input, "{input}");
        }
    }

    #[test]
    fn what_is_no_input_is_refused() {
        for text in
            ["zz", "\"a", "(", ")", "@x", "l17:3", "seal 00", "00 base:x", "00*99999999999", "\"\\x1\""]
        {
            assert!(Input::parse(text).and_then(|input| input.apply(b"")).is_err(), "{text}");
        }
        assert!(Input::parse(&"(".repeat(1000)).is_err());
    }
}
