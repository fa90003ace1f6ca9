//! `mutants`: is every known kind of bug found?

use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only those whose name contains this.
    #[arg(long)]
    only: Option<String>,
    /// Not these: they take more seeds than there is time for.
    #[arg(long, value_delimiter = ',')]
    except: Vec<String>,
    /// Seeds for each at most.
    #[arg(long, default_value_t = 400)]
    seeds: u64,
    /// Requests to volumes in each run, about.
    #[arg(long, default_value_t = 600)]
    ops: u64,
    /// Seconds for each at most.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Threads, each with a mutant of its own.
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

/// Whether all were found.
#[cfg(not(feature = "mutants"))]
pub(crate) fn run(arguments: &Args) -> bool {
    let Args { only, except, seeds, ops, seconds, threads } = arguments;
    let wanted = only.as_deref().unwrap_or("all");
    let budget = Duration::from_secs(*seconds);
    println!(
        "mutants ({wanted} without {except:?}; {seeds} seeds of {ops} operations, {budget:?}, {threads} threads) are not compiled in: \
         add `--features mutants` to cargo's arguments"
    );
    false
}

/// Whether all were found.
#[cfg(feature = "mutants")]
pub(crate) fn run(arguments: &Args) -> bool {
    use parallax_drill::mutants::{Budget, Catch, Mutant, hunt};
    use std::sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    };
    let wanted = |mutant: &Mutant| {
        let name = format!("{mutant:?}").to_lowercase();
        let is_named = |except: &String| except.eq_ignore_ascii_case(&name);
        arguments.only.as_ref().is_none_or(|only| name.contains(&only.to_lowercase()))
            && !arguments.except.iter().any(is_named)
    };
    let mutants: Vec<Mutant> = Mutant::ALL.into_iter().filter(wanted).collect();
    let budget =
        Budget { seeds: arguments.seeds, ops: arguments.ops, time: Duration::from_secs(arguments.seconds) };
    // A mutant panics in many ways; its last words are in the table.
    std::panic::set_hook(Box::new(|_| {}));
    let next = AtomicUsize::new(0);
    let (sender, catches) = mpsc::channel::<Catch>();
    let mut missed = Vec::new();
    std::thread::scope(|scope| {
        for _ in 0..arguments.threads.max(1) {
            let (sender, next, mutants) = (sender.clone(), &next, &mutants);
            scope.spawn(move || {
                while let Some(mutant) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if sender.send(hunt(*mutant, budget)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        for Catch { mutant, found, runs, met, took } in catches {
            let effort = format!("{runs} runs, {:.1} s, met {met} times", took.as_secs_f64());
            match found {
                Some((by, failure)) => {
                    let message: String = failure.message.chars().take(110).collect();
                    println!("{:<24} found by {by} ({effort}): {message}", format!("{mutant:?}"));
                }
                None => {
                    println!("{:<24} NOT FOUND ({effort})", format!("{mutant:?}"));
                    missed.push(mutant);
                }
            }
        }
    });
    println!("{} of {} mutants found", mutants.len() - missed.len(), mutants.len());
    missed.is_empty()
}
