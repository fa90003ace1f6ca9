//! One connection in transmission: a queue of a device, served on one reactor.
//!
//! Requests are parsed in bulk from what has arrived, each becomes a task of the same thread, and their device
//! requests go to the kernel together with the next receive. Replies go out as they become ready, in any order.

use super::{
    Limits,
    flow::{Flow, Ticket},
    handshake::Agreement,
    input::Input,
    request::{Command, Rules},
    wire::{self, Errno, REQUEST_BYTES, UntrustedRequest, command},
};
use parallax_block::{Allocation, BlockDevice, Buffer, ByteRange, Error, Result, WriteOptions};
use parallax_device::{ReactorHandle, Stream};
use std::sync::Arc;

/// Extents in one answer to a block status, at most.
const EXTENTS_MAX: usize = 1024;

/// Serves until the client has had enough, has broken the protocol, or has gone. Returns when every request is
/// answered or given up.
pub(super) async fn serve(
    reactor: &ReactorHandle,
    stream: &Stream,
    input: &mut Input,
    agreement: Agreement,
    limits: &Limits,
) -> Result<()> {
    let Agreement { export, structured, allocation } = agreement;
    let geometry = export.device.geometry();
    let queue = Queue {
        rules: Rules {
            geometry,
            read_only: export.read_only || geometry.read_only,
            allocation,
            request_bytes_max: limits.request_bytes_max,
        },
        device: export.device,
        flow: Flow::new(limits.requests_max, limits.bytes_max, structured),
    };
    let (flow, socket) = (Arc::clone(&queue.flow), stream.clone());
    let sender = reactor.run(async move { flow.send(&socket).await });
    let read = queue.read_requests(reactor, input).await;
    queue.flow.finish();
    sender.await?;
    read
}

struct Queue {
    rules: Rules,
    device: Arc<dyn BlockDevice>,
    flow: Arc<Flow>,
}

impl Queue {
    async fn read_requests(&self, reactor: &ReactorHandle, input: &mut Input) -> Result<()> {
        while input.want(REQUEST_BYTES).await? {
            let Some(request) = UntrustedRequest::decode(input.available()) else {
                return Err(Error::invalid("the client sent something that is no request"));
            };
            input.consume(REQUEST_BYTES);
            if request.command == command::DISCONNECT {
                return Ok(());
            }
            let payload_bytes = if request.command == command::WRITE { request.length } else { 0 };
            if payload_bytes > self.rules.request_bytes_max {
                let message =
                    format!("the client sends {payload_bytes} bytes at once, more than it was offered");
                return Err(Error::invalid(message));
            }
            let checked = self.rules.check(&request);
            let moves_data = matches!(checked, Ok(Command::Read(_))) || payload_bytes > 0;
            let ticket =
                self.flow.admit(request.cookie, if moves_data { request.length as usize } else { 0 }).await;
            let payload = if payload_bytes > 0 {
                Some(input.read(self.flow.buffer(payload_bytes as usize)).await?)
            } else {
                None
            };
            match checked {
                Ok(command) => {
                    let device = Arc::clone(&self.device);
                    reactor.spawn(async move { carry_out(&*device, command, payload, ticket).await });
                }
                Err((error, message)) => ticket.failed(error, message),
            }
        }
        Ok(())
    }
}

async fn carry_out(device: &dyn BlockDevice, command: Command, payload: Option<Buffer>, ticket: Ticket) {
    match command {
        Command::Read(range) => {
            let buffer = ticket.flow().buffer(range.length() as usize);
            let (buffer, result) = device.read(range.offset(), buffer).await;
            match result {
                Ok(()) => ticket.data(range.offset(), buffer),
                Err(error) => fail(ticket, &error),
            }
        }
        Command::Write(range, fua) => {
            let payload = payload.unwrap_or_default();
            let (buffer, result) = device.write(range.offset(), payload, WriteOptions { fua }).await;
            ticket.flow().recycle(buffer);
            answer(ticket, result);
        }
        Command::Flush => answer(ticket, device.flush().await),
        Command::Trim(range, fua) => {
            let mut result = device.discard(range).await;
            if fua && result.is_ok() {
                result = device.flush().await;
            }
            answer(ticket, result);
        }
        // Nothing here would be faster for it.
        Command::Cache => ticket.done(),
        Command::WriteZeroes(range, options) => answer(ticket, device.write_zeroes(range, options).await),
        Command::BlockStatus(range, one) => {
            match device.status(range, if one { 1 } else { EXTENTS_MAX }).await {
                Ok(found) => ticket.status(&extents(range, &found)),
                Err(error) => fail(ticket, &error),
            }
        }
    }
}

fn answer(ticket: Ticket, result: Result<()>) {
    match result {
        Ok(()) => ticket.done(),
        Err(error) => fail(ticket, &error),
    }
}

fn fail(ticket: Ticket, error: &Error) {
    tracing::debug!(%error, "a request failed");
    ticket.failed(Errno::from(error.kind()), &error.to_string());
}

/// Extents as the protocol has them: neighbours of one kind joined, none longer than the range asked for.
fn extents(range: ByteRange, found: &[parallax_block::StatusExtent]) -> Vec<(u32, u32)> {
    let mut extents: Vec<(u32, u32)> = Vec::new();
    let mut left = range.length();
    for extent in found {
        let length = extent.range.length().min(left);
        left -= length;
        let flags = match extent.allocation {
            Allocation::Data => 0,
            Allocation::Hole => wire::EXTENT_HOLE,
        };
        match extents.last_mut() {
            Some((before, same)) if *same == flags => *before += length as u32,
            _ if length > 0 => extents.push((length as u32, flags)),
            _ => {}
        }
    }
    if extents.is_empty() {
        // An answer must say something; data is always true.
        extents.push((range.length() as u32, 0));
    }
    extents
}
