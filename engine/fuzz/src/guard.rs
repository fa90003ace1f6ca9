//! Runs one input under its bounds.
//!
//! Memory is counted by the allocator of the process, for all its threads; so one input runs at a time. What is mapped
//! without the allocator is not counted. A panic counts on whichever thread it happens. A thread that does not come
//! back cannot be stopped, so an input that takes too long ends the process, with its name.

use crate::{Bound, Outcome};
use peakmem_alloc::{INSTRUMENTED_SYSTEM, PeakMemAlloc, PeakMemAllocTrait};
use std::{
    alloc::System,
    io::Write,
    panic::{self, AssertUnwindSafe},
    sync::{
        Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Instant,
};

#[global_allocator]
static MEMORY: &PeakMemAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Held while the inputs of one target run.
static TURN: Mutex<()> = Mutex::new(());

/// Whether an input runs.
static RUNS: AtomicBool = AtomicBool::new(false);

/// What threads said when they panicked, since an input began.
static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Status of a process that an input has hung.
const HUNG: i32 = 86;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The right to run inputs, and a thread that ends the process if one does not end.
pub(crate) struct Turn {
    _held: MutexGuard<'static, ()>,
    watched: mpsc::Sender<Option<(Instant, String)>>,
}

/// Waits until no other target runs.
pub(crate) fn turn() -> Turn {
    listen_to_panics();
    let held = locked(&TURN);
    let (watched, news) = mpsc::channel();
    thread::spawn(move || watch(&news));
    Turn { _held: held, watched }
}

/// Sees inputs begin and end until the turn is over.
fn watch(news: &mpsc::Receiver<Option<(Instant, String)>>) {
    let mut next = news.recv();
    while let Ok(running) = next {
        next = match running {
            None => news.recv(),
            Some((limit, name)) => match news.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let words = format!("\n{name}\nThis input has not ended in its time.\n");
                    // Nothing can be done if even that fails.
                    let _ = std::io::stderr().write_all(words.as_bytes());
                    std::process::exit(HUNG);
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return,
                Ok(news) => Ok(news),
            },
        };
    }
}

fn listen_to_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !RUNS.load(Ordering::SeqCst) {
                // No input runs: a test's own panic.
                return before(info);
            }
            let words = info.payload_as_str().unwrap_or("a panic without words");
            let place = info.location().map(|at| format!(" at {}:{}", at.file(), at.line()));
            locked(&PANICS).push(format!("panicked{}: {words}", place.unwrap_or_default()));
        }));
    });
}

/// Tells what came of an input, or which promise was broken. `name` is said if it does not end.
pub(crate) fn run(
    turn: &Turn,
    bound: Bound,
    name: String,
    input: &dyn Fn() -> Outcome,
) -> Result<Outcome, String> {
    locked(&PANICS).clear();
    let begun = Instant::now();
    // The watcher lives as long as the turn.
    let _ = turn.watched.send(Some((begun + bound.time, name)));
    RUNS.store(true, Ordering::SeqCst);
    MEMORY.reset_peak_memory();
    let outcome = panic::catch_unwind(AssertUnwindSafe(input));
    let (peak, took) = (MEMORY.get_peak_memory(), begun.elapsed());
    RUNS.store(false, Ordering::SeqCst);
    let _ = turn.watched.send(None);
    let panics = std::mem::take(&mut *locked(&PANICS));
    if !panics.is_empty() {
        return Err(panics.join("; "));
    }
    let outcome = outcome.map_err(|_| "panicked without a word".to_owned())?;
    if peak > bound.memory {
        return Err(format!("held {peak} bytes, its bound is {}", bound.memory));
    }
    if let Outcome::Refused(words) = &outcome
        && !words.contains(' ')
    {
        return Err(format!("was refused after {took:?} without words for a person: {words:?}"));
    }
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const BOUND: Bound = Bound { memory: 1 << 20, time: Duration::from_secs(60) };

    fn tried(input: &dyn Fn() -> Outcome) -> Result<Outcome, String> {
        run(&turn(), BOUND, String::new(), input)
    }

    #[test]
    fn a_refusal_in_words_is_good() {
        let refused = Outcome::Refused("it is bad".into());
        assert_eq!(tried(&|| refused.clone()), Ok(refused.clone()));
        assert!(tried(&|| Outcome::Refused("bad".into())).is_err());
    }

    #[test]
    fn a_panic_is_noticed_on_any_thread() {
        let words = tried(&|| panic!("oh {}", 1)).unwrap_err();
        assert!(words.contains("oh 1") && words.contains("guard.rs"), "{words}");
        let words = tried(&|| {
            thread::spawn(|| panic!("far away")).join().unwrap_err();
            Outcome::Accepted
        });
        assert!(words.unwrap_err().contains("far away"));
    }

    #[test]
    fn memory_beyond_the_bound_is_noticed_though_it_was_given_back() {
        let take = |bytes: usize| {
            move || {
                std::hint::black_box(vec![1_u8; bytes]);
                Outcome::Accepted
            }
        };
        assert_eq!(tried(&take(900 << 10)), Ok(Outcome::Accepted));
        assert!(tried(&take(2 << 20)).unwrap_err().contains("bytes"));
    }
}
