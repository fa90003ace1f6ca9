use super::{server::new_socket, wire, *};
use rustix::net::{SocketAddrUnix, SocketFlags, accept_with, bind, connect, listen};
use std::{
    fs::File,
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

const WAIT: Duration = Duration::from_secs(10);

/// A holder on a thread; ends when it is dropped, as a process that is killed does.
struct Running {
    stop: Arc<AtomicBool>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(socket: &Path, patience: Duration) -> Self {
        let mut holder = Holder::listen(&HolderOptions { socket: socket.to_owned(), patience }).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !stopped.load(SeqCst) {
                holder.wait().unwrap();
            }
        });
        Self { stop, socket: socket.to_owned(), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        // Something has to happen for it to notice.
        let _ = connect(new_socket().unwrap(), &SocketAddrUnix::new(&self.socket).unwrap());
        self.thread.take().unwrap().join().unwrap();
    }
}

struct Bed {
    directory: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("holder/holder.sock")
    }

    fn daemon(&self) -> (Depositor, Option<Deposit>) {
        Depositor::connect(&self.socket(), WAIT).unwrap()
    }
}

/// A deposit whose device is one end of a pipe: the other end sees when the last copy closes.
fn deposit(word: &str) -> (Deposit, File) {
    let (reader, writer) = std::io::pipe().unwrap();
    let (state, mut said) = std::io::pipe().unwrap();
    said.write_all(word.as_bytes()).unwrap();
    let root = File::open("/").unwrap();
    let deposit =
        Deposit { connection: u32::MAX, device: writer.into(), root: root.into(), state: state.into() };
    (deposit, File::from(OwnedFd::from(reader)))
}

fn word_of(deposit: Option<Deposit>) -> String {
    let mut word = String::new();
    File::from(deposit.expect("something is kept").state).read_to_string(&mut word).unwrap();
    word
}

/// Waits until every copy of the device is closed, and answers after how long.
fn closed(mut device: File) -> Duration {
    let start = Instant::now();
    assert_eq!(device.read(&mut [0]).unwrap(), 0);
    start.elapsed()
}

#[test]
fn the_next_daemon_gets_what_the_one_before_left() {
    let bed = Bed::new();
    let _holder = Running::start(&bed.socket(), WAIT);
    let (first, kept) = bed.daemon();
    assert!(kept.is_none());
    assert!(first.put(deposit("old").0));
    assert!(first.put(deposit("new").0));
    drop(first);
    let (second, kept) = bed.daemon();
    assert_eq!(word_of(kept), "new");
    second.forget();
    drop(second);
    assert!(bed.daemon().1.is_none());
}

#[test]
fn one_daemon_waits_for_the_other_to_be_gone() {
    let bed = Bed::new();
    let _holder = Running::start(&bed.socket(), WAIT);
    let (first, _) = bed.daemon();
    let refused = Depositor::connect(&bed.socket(), Duration::from_millis(300)).err().unwrap();
    assert!(refused.to_string().contains("holder"), "{refused}");
    let socket = bed.socket();
    let waiting = thread::spawn(move || Depositor::connect(&socket, WAIT).map(|(_, kept)| word_of(kept)));
    thread::sleep(Duration::from_millis(200));
    assert!(first.put(deposit("late").0));
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap(), "late");
}

#[test]
fn a_daemon_deposits_again_with_a_new_holder() {
    let bed = Bed::new();
    let holder = Running::start(&bed.socket(), WAIT);
    let (daemon, _) = bed.daemon();
    assert!(daemon.put(deposit("again").0));
    assert!(daemon.serving());
    drop(holder);
    let start = Instant::now();
    while daemon.is_held() {
        assert!(start.elapsed() < WAIT, "the end of the holder is not noticed");
        thread::sleep(Duration::from_millis(10));
    }
    let _holder = Running::start(&bed.socket(), WAIT);
    while !daemon.is_held() {
        assert!(start.elapsed() < WAIT, "the new holder is not noticed");
        thread::sleep(Duration::from_millis(10));
    }
    drop(daemon);
    assert_eq!(word_of(bed.daemon().1), "again");
}

/// A node was so busy that its holder did not answer one deposit in time. The daemon gave that connection up, but the
/// thread that was to make another slept on a copy of it: nothing was deposited any more, and after its next restart
/// the daemon took over what had been attached long before.
#[test]
fn a_holder_that_was_slow_once_is_deposited_with_again() {
    let bed = Bed::new();
    std::fs::create_dir(bed.socket().parent().unwrap()).unwrap();
    let slow = new_socket().unwrap();
    bind(&slow, &SocketAddrUnix::new(bed.socket()).unwrap()).unwrap();
    listen(&slow, 1).unwrap();
    let socket = bed.socket();
    let connecting = thread::spawn(move || Depositor::connect(&socket, WAIT).unwrap().0);
    let connection = accept_with(&slow, SocketFlags::CLOEXEC).unwrap();
    assert_eq!(wire::receive(&connection).unwrap().unwrap().tag, wire::Tag::Take);
    wire::send(&connection, wire::Tag::Nothing, None).unwrap();
    let daemon = connecting.join().unwrap();
    // Until the thread that watches is asleep.
    thread::sleep(Duration::from_millis(500));
    assert!(!daemon.put(deposit("kept").0), "nobody has answered");

    // The connection stays open on the other side, as that of a process that is only slow does.
    drop(slow);
    let _holder = Running::start(&bed.socket(), WAIT);
    let start = Instant::now();
    while !daemon.is_held() {
        assert!(start.elapsed() < WAIT, "nothing is ever deposited again");
        thread::sleep(Duration::from_millis(10));
    }
    drop(daemon);
    assert_eq!(word_of(bed.daemon().1), "kept");
    drop(connection);
}

#[test]
fn when_nobody_comes_what_was_kept_is_closed() {
    let bed = Bed::new();
    let patience = Duration::from_secs(1);
    let _holder = Running::start(&bed.socket(), patience);
    let (daemon, _) = bed.daemon();
    let (kept, device) = deposit("x");
    assert!(daemon.put(kept));
    assert!(daemon.serving());
    drop(daemon);
    let waited = closed(device);
    assert!((patience / 2..WAIT).contains(&waited), "{waited:?}");
    assert!(bed.daemon().1.is_none());
}

/// A daemon that starts, and dies before it serves, over and over, would keep users waiting for ever.
#[test]
fn the_clock_runs_until_a_daemon_serves() {
    let bed = Bed::new();
    let _holder = Running::start(&bed.socket(), Duration::from_secs(2));
    let (daemon, _) = bed.daemon();
    let (kept, device) = deposit("x");
    assert!(daemon.put(kept));
    drop(daemon);
    let start = Instant::now();
    let watch = thread::spawn(move || closed(device));
    while !watch.is_finished() {
        assert!(start.elapsed() < WAIT, "daemons that never serve stop the clock");
        drop(bed.daemon());
        thread::sleep(Duration::from_millis(50));
    }
    // One that serves stops it.
    let (daemon, _) = bed.daemon();
    let (kept, device) = deposit("y");
    assert!(daemon.put(kept));
    drop(daemon);
    let (daemon, kept) = bed.daemon();
    drop(kept);
    assert!(daemon.serving());
    thread::sleep(Duration::from_millis(2500));
    let watch = thread::spawn(move || closed(device));
    thread::sleep(Duration::from_millis(100));
    assert!(!watch.is_finished(), "what is served was ended");
    daemon.forget();
    watch.join().unwrap();
}

#[test]
fn an_operator_ends_what_is_kept_unless_a_daemon_is_there() {
    let bed = Bed::new();
    let _holder = Running::start(&bed.socket(), WAIT);
    let (daemon, _) = bed.daemon();
    let (kept, device) = deposit("x");
    assert!(daemon.put(kept));
    assert!(release(&bed.socket()).is_err());
    drop(daemon);
    let start = Instant::now();
    while let Err(error) = release(&bed.socket()) {
        assert!(start.elapsed() < WAIT, "{error}");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(closed(device) < WAIT);
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let bed = Bed::new();
    let _holder = Running::start(&bed.socket(), WAIT);
    let (daemon, _) = bed.daemon();
    assert!(daemon.put(deposit("kept").0));
    drop(daemon);
    let address = SocketAddrUnix::new(bed.socket()).unwrap();
    for nonsense in [&[0u8; 8][..], &[255; 8], &[1], &[2, 0, 0, 0, 0, 0, 0, 0], &[101, 0, 0, 0, 0, 0, 0, 0]] {
        let socket = new_socket().unwrap();
        connect(&socket, &address).unwrap();
        rustix::io::write(&socket, nonsense).unwrap();
        assert!(wire::receive(&socket).is_ok_and(|answer| answer.is_none()), "{nonsense:?}");
    }
    assert_eq!(word_of(bed.daemon().1), "kept");
}

#[test]
fn a_second_holder_is_refused_and_a_stale_socket_replaced() {
    let bed = Bed::new();
    let holder = Running::start(&bed.socket(), WAIT);
    let options = HolderOptions { socket: bed.socket(), patience: WAIT };
    assert!(Holder::listen(&options).err().unwrap().to_string().contains("another holder"));
    drop(holder);
    assert!(bed.socket().exists());
    Holder::listen(&options).unwrap();
}

/// A daemon in a container was turned away: it was asked for its credentials, which name no process in another
/// container. Who may open the socket is said by the file alone.
#[test]
fn the_socket_is_for_its_owner_whatever_container_he_is_in() {
    let bed = Bed::new();
    let _holder = Running::start(&bed.socket(), WAIT);
    let mode = std::os::unix::fs::PermissionsExt::mode(&bed.socket().metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let directory = bed.directory.path().join("holder");
    assert_eq!(std::fs::read_dir(directory).unwrap().count(), 1);
}
