//! Bad bytes for the NBD server: `tests/corpus/` keeps them, with what must come of each.
//!
//! An input is everything that a client ever sends; then it closes its side. The server is the real one, on a Unix
//! socket. What comes of an input is what the client is told, and why the log says that the connection ended. After
//! every input a good client must be served.

#![expect(clippy::big_endian_bytes, reason = "NBD is big-endian on the wire")]

use parallax_device::{RamDevice, Reactor, ReactorHandle, ReactorOptions};
use parallax_export::nbd::{Limits, NbdExport, NbdServer, NbdServerHandle};
use parallax_fuzz::{Bound, Input, Outcome, Seed, Target, explore, replay};
use std::{
    collections::BTreeSet,
    io::{self, BufReader, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

const SIZE: u64 = 16 << 20;
/// Bytes of a request at most, and of all requests of a connection: small, so that the bound of memory is too.
const REQUEST_MAX: u32 = 1 << 20;
const BOUND: Bound = Bound { memory: 32 << 20, time: Duration::from_secs(60) };
/// Kinds of errors that a reply tells; further ones add nothing.
const TOLD_MAX: usize = 4;

const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const SIMPLE_REPLY: u32 = 0x6744_6698;
const CHUNK: u32 = 0x668e_33ef;

/// Where the server's log goes.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// Why connections ended since the last time.
    fn reasons(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.0.lock().unwrap());
        let between = |line: &str| Some(line.split_once("error=")?.1.split_once(" socket=")?.0.to_owned());
        text.lines().filter_map(between).collect()
    }
}

struct Bed {
    server: NbdServerHandle,
    reactors: Vec<ReactorHandle>,
    log: Log,
    _directory: TempDir,
}

impl Bed {
    fn new() -> Self {
        let log = Log::default();
        let format = tracing_subscriber::fmt().with_ansi(false).with_writer(log.clone());
        tracing::subscriber::set_global_default(format.finish()).expect("one server for one process");
        let reactor = || Reactor::start("nbd", ReactorOptions::default()).unwrap();
        let reactors = vec![reactor(), reactor()];
        let directory = tempfile::tempdir().unwrap();
        let export = NbdExport {
            name: String::new(),
            device: Arc::new(RamDevice::new(SIZE, 512).unwrap()),
            read_only: false,
            description: "the disk".to_owned(),
        };
        let sealed = NbdExport { name: "sealed".to_owned(), read_only: true, ..export.clone() };
        let limits = Limits {
            request_bytes_max: REQUEST_MAX,
            bytes_max: 2 * REQUEST_MAX as usize,
            ..Limits::default()
        };
        let socket = directory.path().join("nbd");
        let server = NbdServer::start(&reactors, &socket, vec![export, sealed], limits).unwrap();
        Self { server, reactors, log, _directory: directory }
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.server.socket()).unwrap()
    }

    /// Sends what a client sends, reads to the end, and says what was told.
    fn outcome(&self, bytes: &[u8]) -> Outcome {
        let stream = self.connect();
        let mut told = BTreeSet::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The server may close before all of it has been sent.
                let _ = (&stream).write_all(bytes);
                let _ = stream.shutdown(Shutdown::Write);
            });
            listen(&mut BufReader::new(&stream), &mut told);
            // A writer that waits for a server which reads no more must come back.
            let _ = stream.shutdown(Shutdown::Both);
        });
        let reasons = self.log.reasons();
        self.still_serves();
        assert_eq!(self.log.reasons(), [""; 0], "a good client goes in peace");
        let mut words: Vec<String> = told.into_iter().take(TOLD_MAX).collect();
        words.extend(reasons.iter().map(|reason| format!("closed: {reason}")));
        if words.is_empty() { Outcome::Accepted } else { Outcome::Refused(words.join(" | ")) }
    }

    fn still_serves(&self) {
        let mut stream = self.connect();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let good = Input::parse(
            "b32:3 \"IHAVEOPT\" b32:1 b32:0 b32:0x25609513 b16:0 b16:0 b64:77 b64:512 b32:512 \
             b32:0x25609513 b16:0 b16:2 b64:78 b64:0 b32:0",
        );
        stream.write_all(&good.unwrap().apply(&[]).unwrap()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        assert_eq!(answer.len(), 18 + 10 + 16 + 512, "greeting, shape, reply and data");
        assert_eq!(answer[18..26], SIZE.to_be_bytes());
        assert_eq!(answer[36..44], 77_u64.to_be_bytes());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let server = self.server.clone();
        self.reactors[0].block_on(async move { server.shutdown().await }).unwrap();
        self.reactors.iter().for_each(ReactorHandle::shutdown);
    }
}

/// Reads what a server says until it ends, and collects the errors. What it says must be NBD.
fn listen(stream: &mut impl Read, told: &mut BTreeSet<String>) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    // The end may come anywhere: the server shuts down what it has not yet sent if the stream is broken.
    let _ = replies(stream, told);
}

fn number<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn pass(stream: &mut impl Read, length: u32) -> io::Result<String> {
    assert!(length <= REQUEST_MAX + 64, "a reply of {length} bytes");
    let mut kept = Vec::new();
    stream.take(200.min(length.into())).read_to_end(&mut kept)?;
    io::copy(&mut stream.take(u64::from(length) - kept.len() as u64), &mut io::sink())?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

fn replies(stream: &mut impl Read, told: &mut BTreeSet<String>) -> io::Result<()> {
    let mut shaped = false;
    loop {
        let magic = number::<4>(stream)?;
        match u32::from_be_bytes(magic) {
            // How long the data behind it are, only the request knows: what follows is searched.
            SIMPLE_REPLY => {
                let mut rest = SIMPLE_REPLY.to_be_bytes().to_vec();
                stream.read_to_end(&mut rest)?;
                for at in 0..rest.len().saturating_sub(15) {
                    if rest[at..at + 4] == SIMPLE_REPLY.to_be_bytes() && rest[at + 4..at + 8] != [0; 4] {
                        told.insert(format!("the request fails with errno {}", rest[at + 7]));
                    }
                }
                return Ok(());
            }
            CHUNK => {
                let _flags = number::<2>(stream)?;
                let kind = u16::from_be_bytes(number(stream)?);
                let _cookie = number::<8>(stream)?;
                let length = u32::from_be_bytes(number(stream)?);
                if kind & 1 << 15 == 0 {
                    pass(stream, length)?;
                } else {
                    let error = u32::from_be_bytes(number(stream)?);
                    let size = u16::from_be_bytes(number(stream)?);
                    let text = pass(stream, size.into())?;
                    pass(stream, length - 6 - u32::from(size))?;
                    told.insert(format!("the request fails with errno {error}: {text}"));
                }
            }
            high if u64::from(high) == OPTION_REPLY >> 32 => {
                assert_eq!(u32::from_be_bytes(number(stream)?), OPTION_REPLY as u32);
                let option = u32::from_be_bytes(number(stream)?);
                let kind = u32::from_be_bytes(number(stream)?);
                let length = u32::from_be_bytes(number(stream)?);
                let text = pass(stream, length)?;
                if kind & 1 << 31 != 0 {
                    told.insert(format!("option {option} fails with {}: {text}", kind & !(1 << 31)));
                }
            }
            // The answer to EXPORT_NAME has no magic: size, flags, zeroes.
            first if !shaped => {
                shaped = true;
                let second = u32::from_be_bytes(number(stream)?);
                assert_eq!(u64::from(first) << 32 | u64::from(second), SIZE);
                number::<2>(stream)?;
            }
            // The zeroes after it, for a client that wants them.
            0 => {}
            other => panic!("the server says {other:#x}"),
        }
    }
}

/// A good client's bytes, by the notation.
fn seed(name: &'static str, text: &str) -> Seed {
    Seed::new(name, Input::parse(text).unwrap().apply(&[]).unwrap())
}

#[test]
fn nbd_handshake_and_commands() {
    let bed = Bed::new();
    // Structured replies, base:allocation and GO.
    let agreed = "b32:3 \"IHAVEOPT\" b32:8 b32:0 \
                  \"IHAVEOPT\" b32:10 b32:27 b32:0 b32:1 b32:15 \"base:allocation\" \
                  \"IHAVEOPT\" b32:7 b32:8 b32:0 b16:1 b16:3";
    let request = |command: u16, flags: u16, offset: u64, length: u32| {
        format!("b32:0x25609513 b16:{flags} b16:{command} b64:7 b64:{offset} b32:{length}")
    };
    let all = [
        agreed.to_owned(),
        request(0, 0, 512, 512),
        request(1, 1, 4096, 1024),
        "ab*1024".to_owned(),
        request(3, 0, 0, 0),
        request(4, 0, 4096, 4096),
        request(5, 0, 0, 512),
        request(6, 2, 8192, 4096),
        request(7, 0, 0, 65536),
        request(2, 0, 0, 0),
    ];
    let target = Target {
        name: "nbd",
        folder: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/corpus"),
        seeds: vec![
            seed("structured", &all.join(" ")),
            seed("go", agreed),
            seed(
                "name",
                &format!(
                    "b32:3 \"IHAVEOPT\" b32:1 b32:0 {} {} {}",
                    request(0, 0, 0, 512),
                    request(1, 0, 0, 512),
                    "cd*512"
                ),
            ),
            seed(
                "list",
                "b32:3 \"IHAVEOPT\" b32:3 b32:0 \"IHAVEOPT\" b32:6 b32:6 b32:0 b16:0 \"IHAVEOPT\" b32:2 b32:0",
            ),
        ],
        seal: None,
        moves: true,
        bound: BOUND,
        cases: 400,
        run: Box::new(|bytes| bed.outcome(bytes)),
    };
    replay(&target);
    explore(&target);
}
