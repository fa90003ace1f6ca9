//! Calls of gRPC services whose messages are bytes.
//!
//! ```text
//! /package.Service/Method\n      the path; what follows is the one message
//! *package.Service/Method\n      what follows is protobuf whose fields 1 are the messages of a stream
//! ```

mod pool;

pub use pool::{Pool, seed};

use crate::Outcome;
use hyper_util::rt::TokioIo;
use prost::bytes::{Buf as _, BufMut as _};
use std::{
    io::{self, Read as _, Write as _},
    net::Shutdown,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint, Uri},
};

/// Most messages of an answer that are waited for.
const ANSWERS_MAX: usize = 1000;

/// Messages as they are.
#[derive(Debug, Default, Clone, Copy)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = usize;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = usize;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<usize>, Status> {
        let length = buffer.remaining();
        buffer.advance(length);
        Ok(Some(length))
    }
}

/// A connection to a service on a Unix socket.
async fn connect(socket: &Path) -> io::Result<Channel> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket: PathBuf = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").buffer_size(16);
    endpoint.connect_with_connector(connector).await.map_err(io::Error::other)
}

/// Makes the call that `bytes` are, and reads its answer. `Err` says what is wrong with the input itself.
///
/// Each call has a connection of its own: a service that has refused a message before all of it was there may end the
/// connection, and the next call on it would be cancelled.
pub async fn call(socket: &Path, bytes: &[u8], deadline: Duration) -> Result<Result<(), Status>, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("there is no line with a method")?;
    let (line, body) = (&bytes[..end], &bytes[end + 1..]);
    let streams = line.starts_with(b"*");
    let path = [b"/", line.get(1..).unwrap_or(&[])].concat();
    let path = PathAndQuery::try_from(path).map_err(|error| format!("the method is none: {error}"))?;
    let messages = if streams { fields(body)? } else { vec![body.to_vec()] };
    let channel = connect(socket).await.map_err(|error| format!("the service is gone: {error}"))?;
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| format!("the service is gone: {error}"))?;
    let mut request = Request::new(tokio_stream::iter(messages));
    request.set_timeout(deadline);
    let called = async {
        let mut answers = client.streaming(request, path, Raw).await?.into_inner();
        for _ in 0..ANSWERS_MAX {
            if answers.message().await?.is_none() {
                break;
            }
        }
        Ok(())
    };
    Ok(called.await)
}

/// What came of a call: the code and the words. Panics if a service says that it, not the input, is at fault.
pub fn outcome(called: Result<Result<(), Status>, String>) -> Outcome {
    match called {
        Err(words) => Outcome::Refused(format!("no call: {words}")),
        Ok(Ok(())) => Outcome::Accepted,
        Ok(Err(status)) => {
            let guilty = [Code::Internal, Code::Unknown, Code::DataLoss, Code::DeadlineExceeded];
            // What is no protobuf is INTERNAL by the table of gRPC itself, before any service sees it.
            let undecoded = status.message().contains("failed to decode Protobuf message");
            assert!(undecoded || !guilty.contains(&status.code()), "the service blames itself: {status:?}");
            Outcome::Refused(format!("{:?}: {}", status.code(), status.message()))
        }
    }
}

/// Sends bytes that need not be HTTP, and says how the connection ends.
pub fn frames(socket: &Path, bytes: &[u8]) -> Outcome {
    const GOAWAY: u8 = 7;
    let mut stream = std::os::unix::net::UnixStream::connect(socket).expect("the service listens");
    // It may close before all of it has been sent.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    // A connection that is cut says no more than one that is closed.
    let _ = stream.read_to_end(&mut answer);
    let mut rest = &answer[..];
    while let [a, b, c, kind, _, _, _, _, _, after @ ..] = rest {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some((body, next)) = after.split_at_checked(length) else { break };
        if *kind == GOAWAY
            && let Some((head, words)) = body.split_at_checked(8)
            && head[7] != 0
        {
            let words = String::from_utf8_lossy(words);
            return Outcome::Refused(format!("the connection ends with HTTP/2 error {} {words}", head[7]));
        }
        rest = next;
    }
    Outcome::Refused("the connection is closed".into())
}

/// The contents of all fields 1.
fn fields(mut body: &[u8]) -> Result<Vec<Vec<u8>>, String> {
    let mut messages = Vec::new();
    while !body.is_empty() {
        let (tag, rest) = body.split_first().ok_or("no tag")?;
        if *tag != 0x0a {
            return Err(format!("a stream is made of fields 1, not of {tag:#x}"));
        }
        let length = prost::decode_length_delimiter(&mut &rest[..]).map_err(|error| error.to_string())?;
        let rest = &rest[prost::length_delimiter_len(length)..];
        let (message, rest) = rest.split_at_checked(length).ok_or("a message is cut short")?;
        messages.push(message.to_vec());
        body = rest;
    }
    Ok(messages)
}
