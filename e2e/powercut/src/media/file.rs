//! A history as a file.
//!
//! Little-endian numbers of 64 bits, byte strings after their length: boot (two numbers), capacity, the chunks of the
//! base, the tails, the events, each list after its length.

use super::{
    Image,
    history::{Content, Event, History, Memory},
};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Write},
    os::unix::fs::FileExt,
    path::Path,
};

const MAGIC: u64 = u64::from_le_bytes(*b"PLXPOWER");
/// Longest byte string that is believed.
const STRING_MAX: u64 = 1 << 30;

/// Writes a history.
pub(crate) fn save(history: &History, path: &Path) -> Result<()> {
    let mut out = Out(BufWriter::new(File::create(path)?));
    out.number(MAGIC)?;
    out.number(history.boot as u64)?;
    out.number((history.boot >> 64) as u64)?;
    out.number(history.base.capacity())?;
    out.number(history.base.chunks().count() as u64)?;
    for (offset, bytes) in history.base.chunks() {
        out.number(offset)?;
        out.bytes(bytes)?;
    }
    out.number(history.tails.len() as u64)?;
    for (key, bytes) in &history.tails {
        out.bytes(key.as_bytes())?;
        out.bytes(bytes)?;
    }
    out.number(history.events.len() as u64)?;
    for event in &history.events {
        out.event(event)?;
    }
    out.0.flush()?;
    Ok(())
}

/// Reads a history.
pub(crate) fn load(path: &Path) -> Result<History> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let mut input = In(BufReader::new(file));
    ensure!(input.number()? == MAGIC, "{} is not a history", path.display());
    let boot = u128::from(input.number()?) | u128::from(input.number()?) << 64;
    let mut base = Image::new(input.number()?);
    for _ in 0..input.number()? {
        let offset = input.number()?;
        base.write(offset, &input.bytes()?);
    }
    let mut tails = Memory::new();
    for _ in 0..input.number()? {
        let key = input.text()?;
        tails.insert(key, input.bytes()?);
    }
    let count = input.number()?;
    let events = (0..count).map(|_| input.event()).collect::<Result<_>>()?;
    Ok(History { boot, base, tails, events })
}

/// Writes an image as a sparse file that `parallax inspect` can read.
pub(crate) fn save_image(image: &Image, path: &Path) -> Result<()> {
    let file = File::create(path)?;
    file.set_len(image.capacity())?;
    for (offset, bytes) in image.chunks() {
        file.write_all_at(bytes, offset)?;
    }
    Ok(())
}

struct Out<W>(W);

impl<W: Write> Out<W> {
    fn number(&mut self, number: u64) -> Result<()> {
        Ok(self.0.write_all(&number.to_le_bytes())?)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.number(bytes.len() as u64)?;
        Ok(self.0.write_all(bytes)?)
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::WriteBegins { offset, content, fua } => {
                self.number(match content {
                    Content::Bytes(_) => 0,
                    Content::Zeroes(_) => 1,
                })?;
                self.number(*offset)?;
                self.number(u64::from(*fua))?;
                match content {
                    Content::Bytes(bytes) => self.bytes(bytes),
                    Content::Zeroes(length) => self.number(*length as u64),
                }
            }
            Event::WriteEnds { write } => self.number(2).and_then(|()| self.number(*write)),
            Event::FlushBegins { flush } => self.number(3).and_then(|()| self.number(*flush)),
            Event::FlushEnds { flush } => self.number(4).and_then(|()| self.number(*flush)),
            Event::TailCreated { key } => self.number(5).and_then(|()| self.bytes(key.as_bytes())),
            Event::TailWritten { key, offset, bytes } => {
                self.number(6)?;
                self.bytes(key.as_bytes())?;
                self.number(*offset)?;
                self.bytes(bytes)
            }
            Event::TailRemoved { key } => self.number(7).and_then(|()| self.bytes(key.as_bytes())),
            Event::Promise { worker, number } => {
                self.number(8)?;
                self.number(u64::from(*worker))?;
                self.number(*number)
            }
        }
    }
}

struct In<R>(R);

impl<R: Read> In<R> {
    fn number(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes).context("the history ends early")?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        let length = self.number()?;
        ensure!(length <= STRING_MAX, "the history is damaged");
        let mut bytes = vec![0; length as usize];
        self.0.read_exact(&mut bytes).context("the history ends early")?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String> {
        Ok(String::from_utf8(self.bytes()?)?)
    }

    fn event(&mut self) -> Result<Event> {
        Ok(match self.number()? {
            kind @ (0 | 1) => {
                let (offset, fua) = (self.number()?, self.number()? != 0);
                let content = match kind {
                    0 => Content::Bytes(self.bytes()?.into()),
                    _ => Content::Zeroes(self.number()? as usize),
                };
                Event::WriteBegins { offset, content, fua }
            }
            2 => Event::WriteEnds { write: self.number()? },
            3 => Event::FlushBegins { flush: self.number()? },
            4 => Event::FlushEnds { flush: self.number()? },
            5 => Event::TailCreated { key: self.text()? },
            6 => Event::TailWritten { key: self.text()?, offset: self.number()?, bytes: self.bytes()? },
            7 => Event::TailRemoved { key: self.text()? },
            8 => Event::Promise { worker: self.number()? as u32, number: self.number()? },
            other => bail!("the history has an event of an unknown kind: {other}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history");
        let mut base = Image::new(1 << 20);
        base.write(5000, b"there");
        let history = History {
            boot: 7 << 70,
            base,
            tails: Memory::from([("a".into(), vec![1, 2])]),
            events: vec![
                Event::WriteBegins { offset: 512, content: Content::Bytes([3; 512].into()), fua: true },
                Event::WriteBegins { offset: 0, content: Content::Zeroes(512), fua: false },
                Event::WriteEnds { write: 1 },
                Event::FlushBegins { flush: 0 },
                Event::FlushEnds { flush: 0 },
                Event::TailCreated { key: "b".into() },
                Event::TailWritten { key: "b".into(), offset: 9, bytes: vec![1] },
                Event::TailRemoved { key: "b".into() },
                Event::Promise { worker: 2, number: 8 },
            ],
        };
        save(&history, &path).unwrap();
        let read = load(&path).unwrap();
        assert_eq!((read.boot, &read.tails, &read.events), (history.boot, &history.tails, &history.events));
        let mut bytes = [0; 5];
        read.base.read(5000, &mut bytes);
        assert_eq!(&bytes, b"there");
    }
}
