//! Runs stories and sums them up.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::kube::Kube;
use crate::pool::Pool;
use crate::say;
use crate::stage::Stage;
use crate::stories::{ALL, Story};

/// How many stories went well and how many did not.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Outcome {
    /// Stories that ended as they should.
    pub passed: u64,
    /// Stories that did not.
    pub failed: u64,
}

/// Stories by name; all of them when none is named.
pub fn select(names: &[String]) -> Result<Vec<&'static Story>> {
    if names.is_empty() {
        return Ok(ALL.iter().collect());
    }
    let find = |name: &String| match ALL.iter().find(|story| story.name == name) {
        Some(story) => Ok(story),
        None => {
            let known: Vec<&str> = ALL.iter().map(|story| story.name).collect();
            bail!("there is no story {name}; there are: {}", known.join(", "))
        }
    };
    names.iter().map(find).collect()
}

/// Tells stories one after the other; a failed one does not stop the next.
pub fn tell(kube: &Kube, stories: &[&Story]) -> Outcome {
    let mut outcome = Outcome::default();
    for story in stories {
        println!("\n{} {}", say::bold(story.name), say::dim(story.summary));
        let begun = Instant::now();
        let result = one(kube, story);
        let took = say::seconds(begun.elapsed());
        match result {
            Ok(()) => {
                outcome.passed += 1;
                println!("{} {} {}", say::good("passed"), story.name, say::dim(took));
            }
            Err(error) => {
                outcome.failed += 1;
                say::failure(&error);
                println!(
                    "{} {} {}; its namespace story-{} is kept",
                    say::bad("failed"),
                    story.name,
                    say::dim(took),
                    story.name
                );
            }
        }
    }
    outcome
}

fn one(kube: &Kube, story: &Story) -> Result<()> {
    let pool = Pool::of(kube);
    let stage = Stage::open(kube, &pool, story.name)?;
    (story.run)(&stage)?;
    say::step("the namespace goes, and its volumes", || stage.close())?;
    say::step("the whole pool is verified", || pool.check())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_story_is_answered_with_those_that_exist() {
        let error = select(&["nonsense".into()]).unwrap_err().to_string();
        assert!(error.contains("postgres"), "{error}");
    }

    #[test]
    fn names_are_unique_and_fit_a_namespace() {
        let mut names: Vec<&str> = ALL.iter().map(|story| story.name).collect();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
