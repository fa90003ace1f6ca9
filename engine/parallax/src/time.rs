//! Milliseconds since the Unix epoch as a date that sorts.

/// `2026-11-21T10:59:16Z`.
pub(crate) fn iso(milliseconds: i64) -> String {
    let (date, (hour, minute, second)) = split(milliseconds);
    format!("{date}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `2026-11-21 10:59:16`, for tables, in UTC.
pub(crate) fn plain(milliseconds: i64) -> String {
    let (date, (hour, minute, second)) = split(milliseconds);
    format!("{date} {hour:02}:{minute:02}:{second:02}")
}

fn split(milliseconds: i64) -> (String, (i64, i64, i64)) {
    let seconds = milliseconds.div_euclid(1000);
    let (day, time) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Years that begin in March put the leap day at the end, where it disturbs no month.
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (format!("{year:04}-{month:02}-{day:02}"), (time / 3600, time / 60 % 60, time % 60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_around_leap_days_and_the_epoch() {
        assert_eq!(iso(0), "1970-01-01T00:00:00Z");
        assert_eq!(iso(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(iso(1_795_258_756_999), "2026-11-21T10:59:16Z");
        assert_eq!(plain(-1), "1969-12-31 23:59:59");
        assert_eq!(plain(4_107_542_399_000), "2100-02-28 23:59:59");
    }
}
