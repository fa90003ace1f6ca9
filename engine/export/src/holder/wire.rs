//! Messages between a daemon and the holder: one packet each, eight bytes and perhaps three descriptors.

use super::Deposit;
use parallax_block::{Error, ErrorKind, Result, ResultExt};
use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// What a message is about. The numbers are the protocol: a holder outlives many daemons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Tag {
    /// What is kept?
    Take = 1,
    /// Keep this instead.
    Put = 2,
    /// Requests are being answered.
    Serving = 3,
    /// Close what is kept: nobody needs it.
    Forget = 4,
    /// End the connection that is kept, now: an operator wants it.
    Release = 5,
    /// Here it is.
    Kept = 101,
    /// There is nothing.
    Nothing = 102,
    /// Done.
    Done = 103,
    /// Another daemon is connected.
    Busy = 104,
}

impl Tag {
    fn from_number(number: u32) -> Option<Self> {
        [
            Self::Take,
            Self::Put,
            Self::Serving,
            Self::Forget,
            Self::Release,
            Self::Kept,
            Self::Nothing,
            Self::Done,
            Self::Busy,
        ]
        .into_iter()
        .find(|tag| *tag as u32 == number)
    }
}

/// One message.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) tag: Tag,
    pub(super) deposit: Option<Deposit>,
}

fn os(error: rustix::io::Errno) -> Error {
    Error::from(io::Error::from(error))
}

/// Sends a message; the descriptors stay open here too.
pub(super) fn send(socket: impl AsFd, tag: Tag, deposit: Option<&Deposit>) -> Result<()> {
    let connection = deposit.map_or(0, |deposit| deposit.connection);
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(tag as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&connection.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = deposit
        .map(|deposit| vec![deposit.device.as_fd(), deposit.root.as_fd(), deposit.state.as_fd()])
        .unwrap_or_default();
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(Error::new(ErrorKind::Io, "three descriptors do not fit a message"));
    }
    sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)
        .map(drop)
        .map_err(os)
        .context(|| "talking to the holder of block devices")
}

/// Receives a message; `None` when the other side is gone.
pub(super) fn receive(socket: impl AsFd) -> Result<Option<Message>> {
    let mut bytes = [0; 8];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(received) => break received.bytes,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            Err(error) => return Err(os(error).context("listening to the holder of block devices")),
        }
    };
    if received == 0 {
        return Ok(None);
    }
    let descriptors: Vec<OwnedFd> = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
            _ => None,
        })
        .flatten()
        .collect();
    let number = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let tag = Tag::from_number(number(0)).filter(|_| received == bytes.len());
    let Some(tag) = tag else {
        return Err(Error::corrupt(format!(
            "a message of {received} bytes with number {} is unknown",
            number(0)
        )));
    };
    let carries = matches!(tag, Tag::Put | Tag::Kept);
    let deposit = match <[OwnedFd; 3]>::try_from(descriptors) {
        Ok([device, root, state]) if carries => Some(Deposit { connection: number(4), device, root, state }),
        Err(descriptors) if descriptors.is_empty() && !carries => None,
        _ => return Err(Error::corrupt(format!("a message {tag:?} came with the wrong descriptors"))),
    };
    Ok(Some(Message { tag, deposit }))
}
