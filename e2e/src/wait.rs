//! Waiting for something outside this process, always with a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Time between two looks. The things waited for take seconds.
const PAUSE: Duration = Duration::from_millis(300);

/// Asks `look` until it answers with a value. The last reason it gave is in the error.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let begun = Instant::now();
    let mut reason = String::from("it has not happened");
    loop {
        match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => reason = format!("{error:#}"),
        }
        if begun.elapsed() > limit {
            bail!("waited {} s for {what}: {reason}", limit.as_secs());
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn the_last_reason_is_told_when_the_deadline_passes() {
        let error = until::<()>("the moon", Duration::ZERO, || Err(anyhow!("it is day"))).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for the moon: it is day");
    }

    #[test]
    fn a_value_ends_the_wait() {
        let mut looks = 0;
        let seen = until("three looks", Duration::from_secs(5), || {
            looks += 1;
            Ok((looks == 3).then_some(looks))
        })
        .unwrap();
        assert_eq!(seen, 3);
    }
}
