//! Requests to attached volumes, many at a time, each judged when it is answered.

use crate::{
    Failure,
    life::Life,
    model::{Outcome, Piece, Stamp, Tick, WriteId, content},
    options::{Options, Weights},
    subject::Volume,
};
use parallax_block::{
    Allocation, Buffer, ByteRange, ErrorKind, Result, SECTOR_SIZE, StatusExtent, WriteOptions, ZeroOptions,
};
use parallax_sim::Prng;
use parallax_store::VdiId;
use std::{ops::Range, sync::Arc};

const SECTOR: u64 = SECTOR_SIZE as u64;
const BLOCK_SECTORS: u64 = 8;

/// What a lane asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Status,
    Write { fua: bool },
    Flush,
    Discard,
    Zero { fua: bool, unmap: bool },
}

/// A request that is ready to be sent.
struct Request {
    vdi: VdiId,
    handle: Arc<dyn Volume>,
    kind: Kind,
    sectors: Range<u64>,
    stamp: Stamp,
}

impl Request {
    fn range(&self) -> ByteRange {
        bytes(&self.sectors)
    }
}

pub(crate) fn bytes(sectors: &Range<u64>) -> ByteRange {
    ByteRange::new(sectors.start * SECTOR, (sectors.end - sectors.start) * SECTOR).expect("inside a volume")
}

impl Life {
    /// Sends one request to some volume and judges the answer. Whether there was a volume to send it to.
    pub(crate) async fn request(&self) -> std::result::Result<bool, Failure> {
        let Some(request) = self.choose() else { return Ok(false) };
        self.send(request).await?;
        Ok(true)
    }

    /// Sends this request to the first volume that is attached, if one is.
    pub(crate) async fn ask(&self, kind: Kind, sectors: Range<u64>) -> std::result::Result<(), Failure> {
        let request = {
            let mut forest = self.drill.forest.lock();
            let attached =
                forest.volumes.iter().find_map(|(id, v)| v.handle.clone().map(|handle| (*id, handle)));
            let stamp = forest.next_stamp();
            attached.map(|(vdi, handle)| Request { vdi, handle, kind, sectors, stamp })
        };
        match request {
            Some(request) => self.send(request).await,
            None => Ok(()),
        }
    }

    async fn send(&self, request: Request) -> std::result::Result<(), Failure> {
        match request.kind {
            Kind::Read => self.read(request).await,
            Kind::Status => self.status(request).await,
            Kind::Flush => self.flush(request).await,
            _ => self.change(request).await,
        }
    }

    fn choose(&self) -> Option<Request> {
        let mut prng = self.prng.lock();
        let mut forest = self.drill.forest.lock();
        let attached: Vec<(VdiId, u64, u32, Arc<dyn Volume>)> = forest
            .volumes
            .iter()
            .filter_map(|(id, v)| v.handle.clone().map(|handle| (*id, v.size, v.logical_block, handle)))
            .collect();
        if attached.is_empty() {
            return None;
        }
        let (vdi, size, logical_block, handle) = prng.pick(&attached).clone();
        let kind = kind(&mut prng, &self.drill.options);
        let grain = u64::from(logical_block) / SECTOR;
        let sectors = self.place(&mut prng, size / SECTOR, grain);
        Some(Request { vdi, handle, kind, sectors, stamp: forest.next_stamp() })
    }

    /// Some sectors of a volume, whole grains.
    fn place(&self, prng: &mut Prng, total: u64, grain: u64) -> Range<u64> {
        let options = &self.drill.options;
        let longest = match prng.range(0..3) {
            _ if !prng.chance(options.smaller_percent, 100) => options.request_sectors_max,
            0 => 1,
            1 => BLOCK_SECTORS * 2,
            _ => options.request_sectors_max,
        };
        let grains = total / grain;
        let most = (longest / grain).clamp(1, grains);
        let length = if options.smaller_percent < 50 { most } else { prng.range(1..most + 1) };
        let start = if prng.chance(options.hot_percent, 100) {
            prng.range(0..(32 / grain).min(grains - length + 1))
        } else {
            prng.range(0..grains - length + 1)
        };
        let (mut start, mut end) = (start * grain, (start + length) * grain);
        if prng.chance(1, 3) {
            // Whole blocks: the path that most filesystems take.
            start = start / BLOCK_SECTORS * BLOCK_SECTORS;
            end = end.next_multiple_of(BLOCK_SECTORS).min(total);
        }
        start..end
    }

    async fn read(&self, request: Request) -> std::result::Result<(), Failure> {
        let begin = self.drill.note(request.vdi, &request.sectors, || format!("read {:?}", request.sectors));
        let (buffer, result) = request
            .handle
            .read(request.range().offset(), Buffer::zeroed(request.range().length() as usize))
            .await;
        let done = result.is_ok();
        self.expect(&request, result)?;
        if !done {
            return Ok(());
        }
        self.judge(request.vdi, request.sectors.start, &buffer, begin)
    }

    /// Compares bytes that were read since `begin` with the model.
    pub(crate) fn judge(
        &self,
        vdi: VdiId,
        first: u64,
        bytes: &[u8],
        begin: Tick,
    ) -> std::result::Result<(), Failure> {
        let mut forest = self.drill.forest.lock();
        let end = forest.writes.tick();
        if !forest.volumes.contains_key(&vdi) {
            return Ok(());
        }
        for (index, sector) in bytes.chunks(SECTOR_SIZE).enumerate() {
            let lba = first + index as u64;
            let found = match Stamp::read(lba, sector) {
                Ok(found) => found,
                Err(garbage) => return Err(self.drill.garbage(&forest, vdi, lba, garbage)),
            };
            let (writes, volume) = forest.split(vdi);
            if let Err(wrong) = volume.registers.read(lba, found, begin, end, writes) {
                if forest.is_haunted(Some(vdi), lba, found) {
                    continue;
                }
                let volume = &forest.volumes[&vdi];
                let what = format!("read of {} ({vdi}) in ticks {begin}..{end}", volume.name);
                return Err(forest.wrong(vdi, &what, &wrong));
            }
        }
        Ok(())
    }

    async fn status(&self, request: Request) -> std::result::Result<(), Failure> {
        let begin =
            self.drill.note(request.vdi, &request.sectors, || format!("status {:?}", request.sectors));
        let result = request.handle.status(request.range(), 16).await;
        let extents = match result {
            Ok(extents) => extents,
            Err(error) => return self.expect(&request, Err(error)),
        };
        let failure = |message: String| Err(Failure { message, story: Vec::new() });
        let mut at = request.range().offset();
        let mut forest = self.drill.forest.lock();
        let end = forest.writes.tick();
        for StatusExtent { range, allocation } in &extents {
            if range.offset() != at || range.is_empty() {
                return failure(format!("status of {}: {extents:?} do not adjoin", request.range()));
            }
            at = range.end();
            if *allocation == Allocation::Data || !forest.volumes.contains_key(&request.vdi) {
                continue;
            }
            let last = range.end().min(request.range().end()) / SECTOR;
            for lba in range.offset() / SECTOR..last {
                let (writes, volume) = forest.split(request.vdi);
                let allowed = volume.registers.readable(lba, begin, end, writes);
                let haunted = forest.is_haunted(Some(request.vdi), lba, Stamp::ZERO);
                if !haunted && !allowed.contains(&Stamp::ZERO) {
                    let story = forest.story(request.vdi, lba);
                    let message = format!("status calls sector {lba} a hole, which holds {allowed:?}");
                    return Err(Failure { message, story });
                }
            }
        }
        if extents.is_empty() || extents.len() > 16 || at > request.range().end() {
            return failure(format!(
                "status of {} answered {} extents to {at}",
                request.range(),
                extents.len()
            ));
        }
        Ok(())
    }

    async fn flush(&self, request: Request) -> std::result::Result<(), Failure> {
        let begin = self.drill.note(request.vdi, &(0..0), || "flush".to_owned());
        let result = request.handle.flush().await;
        let done = result.is_ok();
        self.expect(&request, result)?;
        if done {
            let mut forest = self.drill.forest.lock();
            forest.note(Some(request.vdi), 0..0, format!("flush since {begin} done"));
            if forest.volumes.contains_key(&request.vdi) {
                let (writes, volume) = forest.split(request.vdi);
                volume.flushed(begin, writes);
            }
        }
        Ok(())
    }

    async fn change(&self, request: Request) -> std::result::Result<(), Failure> {
        let write = self.begin_change(&request);
        let range = request.range();
        let (fua, result) = match request.kind {
            Kind::Write { fua } => {
                let mut buffer = Buffer::zeroed(range.length() as usize);
                for (index, sector) in buffer.chunks_mut(SECTOR_SIZE).enumerate() {
                    request.stamp.fill(request.sectors.start + index as u64, sector);
                }
                let (returned, result) =
                    request.handle.write(range.offset(), buffer, WriteOptions { fua }).await;
                if returned.len() as u64 != range.length() {
                    let message = format!("a write of {range} returned a buffer of {} bytes", returned.len());
                    return Err(Failure { message, story: Vec::new() });
                }
                (fua, result)
            }
            Kind::Zero { fua, unmap } => {
                (fua, request.handle.write_zeroes(range, ZeroOptions { unmap, fua }).await)
            }
            _ => (false, request.handle.discard(range).await),
        };
        let outcome = match result {
            Ok(()) => Outcome::Done,
            Err(_) if self.drill.is_haunted() => Outcome::Haunting,
            Err(_) => Outcome::Doubtful,
        };
        {
            let mut forest = self.drill.forest.lock();
            forest.writes.finish(write, outcome);
            if outcome == Outcome::Haunting {
                let brings = matches!(request.kind, Kind::Write { .. });
                let stamp = if brings { request.stamp } else { Stamp::ZERO };
                forest.haunt(request.vdi, request.sectors.clone(), stamp);
            }
            let verdict = match &result {
                Ok(()) => "done".to_owned(),
                Err(error) => format!("failed: {error}"),
            };
            forest.note(Some(request.vdi), request.sectors.clone(), format!("{} {verdict}", request.stamp));
            if fua {
                forest.writes.mark_durable(write);
            }
            if let Some(volume) =
                forest.volumes.get_mut(&request.vdi).filter(|_| outcome == Outcome::Done && !fua)
            {
                volume.unflushed.insert(write);
            }
        }
        self.expect(&request, result)
    }

    fn begin_change(&self, request: &Request) -> WriteId {
        let mut forest = self.drill.forest.lock();
        let Request { vdi, kind, sectors, stamp, .. } = request;
        forest.note(Some(*vdi), sectors.clone(), format!("{stamp} {kind:?} {sectors:?}"));
        let write = forest.writes.begin();
        let whole = bytes(sectors).inner_blocks();
        let pieces: Vec<Piece> = sectors
            .clone()
            .map(|lba| Piece {
                lba,
                stamp: if matches!(kind, Kind::Write { .. }) { *stamp } else { Stamp::ZERO },
                certain: *kind != Kind::Discard || whole.contains(&(lba / BLOCK_SECTORS)),
            })
            .collect();
        let (writes, volume) = forest.split(*vdi);
        volume.registers.begin(write, &pieces, writes);
        write
    }

    /// Errors are failures of the run, but for want of space in a tight pool.
    fn expect(&self, request: &Request, result: Result<()>) -> std::result::Result<(), Failure> {
        let Err(error) = result else { return Ok(()) };
        if self.drill.may_fail(&error) {
            return Ok(());
        }
        if self.drill.options.tight && error.kind() == ErrorKind::OutOfSpace && request.kind != Kind::Flush {
            self.drill.count(|summary| summary.out_of_space += 1);
            return Ok(());
        }
        let story = self.drill.forest.lock().story(request.vdi, request.sectors.start);
        Err(Failure {
            message: format!("{:?} of {} failed: {error:?}", request.kind, request.range()),
            story,
        })
    }
}

fn kind(prng: &mut Prng, options: &Options) -> Kind {
    let Weights { read, write, flush, discard, zero } = options.weights;
    let mut at = prng.range(0..read + write + flush + discard + zero);
    let mut falls_in = |weight: u64| {
        let inside = at < weight;
        at = at.saturating_sub(weight);
        inside
    };
    if falls_in(read) {
        if prng.chance(1, 8) { Kind::Status } else { Kind::Read }
    } else if falls_in(write) {
        Kind::Write { fua: prng.chance(options.fua_percent, 100) }
    } else if falls_in(flush) {
        Kind::Flush
    } else if falls_in(discard) {
        Kind::Discard
    } else {
        Kind::Zero { fua: prng.chance(options.fua_percent, 100), unmap: prng.chance(1, 2) }
    }
}

impl crate::run::Drill {
    /// A line of the log.
    pub(crate) fn note(&self, vdi: VdiId, sectors: &Range<u64>, text: impl FnOnce() -> String) -> Tick {
        self.forest.lock().note(Some(vdi), sectors.clone(), text())
    }

    pub(crate) fn garbage(
        &self,
        forest: &crate::model::Forest,
        vdi: VdiId,
        lba: u64,
        garbage: content::Garbage,
    ) -> Failure {
        Failure { message: format!("sector {lba} of {vdi} holds {garbage}"), story: forest.story(vdi, lba) }
    }
}
