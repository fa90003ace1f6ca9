//! From the greeting to the moment when a client has chosen an export.
//!
//! Fixed newstyle: the server greets, the client sends options one at a time, each is answered, until one of
//! them begins transmission or ends the connection. TLS is not offered: the socket is for its owner only.

use super::{
    NbdExport,
    input::Input,
    option::{Choice, Contexts, export_name},
    registry::Seat,
    wire::{self, handshake_flag, info, option, reply, transmission_flag},
};
use parallax_block::{BLOCK_SIZE, Buffer, Error, Result};
use parallax_device::{SendPart, Stream};
use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    big_endian::{U16, U32, U64},
};

/// Bytes of an option's payload, at most; longer ones are passed over.
const OPTION_MAX: usize = 64 << 10;
/// Bytes of a payload that are passed over, at most; longer ones end the connection.
const SKIP_MAX: usize = 1 << 20;

/// What was agreed.
pub(super) struct Agreement {
    pub(super) export: NbdExport,
    pub(super) structured: bool,
    pub(super) allocation: bool,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Greeting {
    magic: U64,
    style: U64,
    flags: U16,
}

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OptionHeader {
    magic: U64,
    option: U32,
    length: U32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct ReplyHeader {
    magic: U64,
    option: U32,
    kind: U32,
    length: U32,
}

/// Where a handshake stands.
pub(super) struct Handshake<'a> {
    stream: &'a Stream,
    input: &'a mut Input,
    seat: &'a Seat,
    request_bytes_max: u32,
    no_zeroes: bool,
    structured: bool,
    /// Export for which `base:allocation` was chosen.
    allocation: Option<String>,
}

/// What an option led to.
enum Step {
    Next,
    End,
    Begin(NbdExport),
}

impl<'a> Handshake<'a> {
    pub(super) fn new(
        stream: &'a Stream,
        input: &'a mut Input,
        seat: &'a Seat,
        request_bytes_max: u32,
    ) -> Self {
        Self { stream, input, seat, request_bytes_max, no_zeroes: false, structured: false, allocation: None }
    }

    /// Runs to its end. `None` if the client wants nothing more.
    pub(super) async fn run(mut self) -> Result<Option<Agreement>> {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let greeting =
            Greeting { magic: wire::GREETING.into(), style: wire::OPTION_MAGIC.into(), flags: flags.into() };
        self.send(greeting.as_bytes().to_vec()).await?;
        if !self.input.want(size_of::<U32>()).await? {
            return Ok(None);
        }
        let chosen = U32::read_from_prefix(self.input.available()).map_or(0, |(flags, _)| flags.get());
        self.input.consume(size_of::<U32>());
        if chosen & !u32::from(flags) != 0 || chosen & u32::from(handshake_flag::FIXED_NEWSTYLE) == 0 {
            return Err(Error::invalid(format!("the client answers the greeting with flags {chosen:#x}")));
        }
        self.no_zeroes = chosen & u32::from(handshake_flag::NO_ZEROES) != 0;
        loop {
            if !self.input.want(size_of::<OptionHeader>()).await? {
                return Ok(None);
            }
            match self.option().await? {
                Step::Next => {}
                Step::End => return Ok(None),
                Step::Begin(export) => {
                    let allocation = self.structured && self.allocation.as_ref() == Some(&export.name);
                    return Ok(Some(Agreement { export, structured: self.structured, allocation }));
                }
            }
        }
    }

    async fn option(&mut self) -> Result<Step> {
        let Ok((header, _)) = OptionHeader::ref_from_prefix(self.input.available()) else {
            return Err(Error::invalid("the client sent half an option"));
        };
        let (magic, option, length) = (header.magic.get(), header.option.get(), header.length.get() as usize);
        if magic != wire::OPTION_MAGIC {
            return Err(Error::invalid("the client sent something that is no option"));
        }
        self.input.consume(size_of::<OptionHeader>());
        if length > OPTION_MAX {
            if length > SKIP_MAX || option == option::EXPORT_NAME {
                return Err(Error::invalid(format!("the client sent an option of {length} bytes")));
            }
            self.input.skip(length).await?;
            self.refuse(option, reply::TOO_BIG, "the option is too long").await?;
            return Ok(Step::Next);
        }
        let payload = self.input.read(Buffer::zeroed(length)).await?;
        match option {
            option::EXPORT_NAME => self.export_name(&payload).await,
            option::ABORT => {
                // The client may have closed already, which is its right.
                let _ = self.reply(option, reply::ACK, &[]).await;
                Ok(Step::End)
            }
            option::LIST => self.list(&payload).await,
            option::INFO | option::GO => self.choose(option, &payload).await,
            option::STRUCTURED_REPLY if payload.is_empty() => {
                self.structured = true;
                self.reply(option, reply::ACK, &[]).await.map(|()| Step::Next)
            }
            option::STRUCTURED_REPLY => {
                self.refuse(option, reply::INVALID, "the option takes no payload").await
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(option, &payload).await,
            _ => self.refuse(option, reply::UNSUPPORTED, "the option is not known to this server").await,
        }
    }

    async fn export_name(&mut self, payload: &[u8]) -> Result<Step> {
        // The one option that cannot be refused but by closing.
        let export = export_name(payload)
            .and_then(|name| self.seat.take(name))
            .ok_or_else(|| Error::invalid("the client asked for an export that does not exist"))?;
        let mut answer = shape(&export).as_bytes().to_vec();
        if !self.no_zeroes {
            answer.extend([0; 124]);
        }
        self.send(answer).await?;
        Ok(Step::Begin(export))
    }

    async fn list(&mut self, payload: &[u8]) -> Result<Step> {
        if !payload.is_empty() {
            return self.refuse(option::LIST, reply::INVALID, "the option takes no payload").await;
        }
        for export in self.seat.exports() {
            let mut entry = string(&export.name);
            // What follows the name is for people.
            entry.extend(export.description.as_bytes());
            self.reply(option::LIST, reply::SERVER, &entry).await?;
        }
        self.reply(option::LIST, reply::ACK, &[]).await?;
        Ok(Step::Next)
    }

    async fn choose(&mut self, option: u32, payload: &[u8]) -> Result<Step> {
        let Some(choice) = Choice::parse(payload) else {
            return self.refuse(option, reply::INVALID, "the option is malformed").await;
        };
        let found =
            if option == option::GO { self.seat.take(choice.name) } else { self.seat.find(choice.name) };
        let Some(export) = found else {
            return self.refuse(option, reply::UNKNOWN, "there is no export of that name").await;
        };
        let geometry = export.device.geometry();
        let knows_block_size = choice.wanted.contains(&info::BLOCK_SIZE);
        if option == option::GO && !knows_block_size && geometry.logical_block > 512 {
            self.seat.leave();
            let message = format!(
                "requests must be multiples of {} bytes: ask for the block size first",
                geometry.logical_block
            );
            return self.refuse(option, reply::BLOCK_SIZE_REQUIRED, &message).await;
        }
        let mut about = U16::new(info::EXPORT).as_bytes().to_vec();
        about.extend(shape(&export).as_bytes());
        self.reply(option, reply::INFO, &about).await?;
        let mut about = U16::new(info::BLOCK_SIZE).as_bytes().to_vec();
        let preferred = geometry.physical_block.max(BLOCK_SIZE as u32);
        for size in [geometry.logical_block, preferred, self.request_bytes_max] {
            about.extend(U32::new(size).as_bytes());
        }
        self.reply(option, reply::INFO, &about).await?;
        for (kind, text) in [(info::NAME, &export.name), (info::DESCRIPTION, &export.description)] {
            if choice.wanted.contains(&kind) && (kind == info::NAME || !text.is_empty()) {
                let mut about = U16::new(kind).as_bytes().to_vec();
                about.extend(text.as_bytes());
                self.reply(option, reply::INFO, &about).await?;
            }
        }
        self.reply(option, reply::ACK, &[]).await?;
        Ok(if option == option::GO { Step::Begin(export) } else { Step::Next })
    }

    async fn contexts(&mut self, option: u32, payload: &[u8]) -> Result<Step> {
        if !self.structured {
            let message = "metadata contexts need structured replies to be negotiated first";
            return self.refuse(option, reply::INVALID, message).await;
        }
        let Some(contexts) = Contexts::parse(payload) else {
            return self.refuse(option, reply::INVALID, "the option is malformed").await;
        };
        if self.seat.find(contexts.name).is_none() {
            return self.refuse(option, reply::UNKNOWN, "there is no export of that name").await;
        }
        let lists = option == option::LIST_META_CONTEXT;
        let wildcard = lists && (contexts.queries.is_empty() || contexts.queries.contains(&"base:"));
        let chosen = wildcard || contexts.queries.contains(&wire::ALLOCATION_NAME);
        if chosen {
            let number = if lists { 0 } else { wire::ALLOCATION_CONTEXT };
            let mut answer = U32::new(number).as_bytes().to_vec();
            answer.extend(wire::ALLOCATION_NAME.as_bytes());
            self.reply(option, reply::META_CONTEXT, &answer).await?;
        }
        if !lists {
            self.allocation = chosen.then(|| contexts.name.to_owned());
        }
        self.reply(option, reply::ACK, &[]).await?;
        Ok(Step::Next)
    }

    async fn refuse(&self, option: u32, kind: u32, message: &str) -> Result<Step> {
        self.reply(option, kind, message.as_bytes()).await?;
        Ok(Step::Next)
    }

    async fn reply(&self, option: u32, kind: u32, payload: &[u8]) -> Result<()> {
        let header = ReplyHeader {
            magic: wire::OPTION_REPLY_MAGIC.into(),
            option: option.into(),
            kind: kind.into(),
            length: (payload.len() as u32).into(),
        };
        let mut message = header.as_bytes().to_vec();
        message.extend(payload);
        self.send(message).await
    }

    async fn send(&self, message: Vec<u8>) -> Result<()> {
        self.stream.send(vec![SendPart::Bytes(message)]).await.1
    }
}

/// Size and offers of an export.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Shape {
    size: U64,
    flags: U16,
}

fn shape(export: &NbdExport) -> Shape {
    let geometry = export.device.geometry();
    let mut flags = transmission_flag::HAS_FLAGS
        | transmission_flag::FLUSH
        | transmission_flag::FUA
        | transmission_flag::DONT_FRAGMENT
        | transmission_flag::CACHE
        // A flush of the device covers the writes of all connections.
        | transmission_flag::MULTI_CONN;
    flags |= if export.read_only || geometry.read_only {
        transmission_flag::READ_ONLY
    } else if geometry.discard_granularity > 0 {
        transmission_flag::TRIM | transmission_flag::WRITE_ZEROES
    } else {
        transmission_flag::WRITE_ZEROES
    };
    Shape { size: geometry.capacity.into(), flags: flags.into() }
}

fn string(text: &str) -> Vec<u8> {
    let mut bytes = U32::new(text.len() as u32).as_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
