//! Times as the CRI log format writes them.

use std::time::{SystemTime, UNIX_EPOCH};

/// Length of a formatted time, in bytes.
pub(super) const TIMESTAMP_LEN: usize = "2006-01-02T15:04:05.000000000Z".len();

const SECONDS_PER_DAY: u64 = 86_400;

/// Appends `time` in UTC, RFC 3339 with nine digits of fraction. A time before 1970 is written as
/// 1970.
pub(super) fn append_timestamp(line: &mut Vec<u8>, time: SystemTime) {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_date(seconds / SECONDS_PER_DAY);
    let second_of_day = seconds % SECONDS_PER_DAY;
    append_digits(line, year, 4);
    line.push(b'-');
    append_digits(line, month, 2);
    line.push(b'-');
    append_digits(line, day, 2);
    line.push(b'T');
    append_digits(line, second_of_day / 3600, 2);
    line.push(b':');
    append_digits(line, second_of_day / 60 % 60, 2);
    line.push(b':');
    append_digits(line, second_of_day % 60, 2);
    line.push(b'.');
    append_digits(line, u64::from(since_epoch.subsec_nanos()), 9);
    line.push(b'Z');
}

fn append_digits(line: &mut Vec<u8>, mut value: u64, width: usize) {
    let start = line.len();
    line.resize(start + width, b'0');
    for digit in line[start..].iter_mut().rev() {
        *digit += u8::try_from(value % 10).expect("a decimal digit fits in a byte");
        value /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Counts in eras
/// of 400 years that begin on 1 March, so that a leap day is the last day of its year.
fn civil_date(days_since_epoch: u64) -> (u64, u64, u64) {
    const DAYS_FROM_YEAR_0_TO_1970: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days_since_epoch + DAYS_FROM_YEAR_0_TO_1970;
    let era = days / DAYS_PER_ERA;
    let day_of_era = days % DAYS_PER_ERA;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let (month, next_year) = if month_from_march < 10 {
        (month_from_march + 3, 0)
    } else {
        (month_from_march - 9, 1)
    };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn format(seconds: u64, nanoseconds: u32) -> String {
        let mut line = Vec::new();
        append_timestamp(&mut line, UNIX_EPOCH + Duration::new(seconds, nanoseconds));
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn times_are_written_in_utc_with_nanoseconds() {
        assert_eq!(format(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(format(951_782_399, 1), "2000-02-28T23:59:59.000000001Z");
        assert_eq!(format(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(format(951_868_800, 0), "2000-03-01T00:00:00.000000000Z");
        assert_eq!(
            format(1_798_761_599, 999_999_999),
            "2026-12-31T23:59:59.999999999Z"
        );
        assert_eq!(format(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(format(0, 0).len(), TIMESTAMP_LEN);
    }

    #[test]
    fn every_day_of_a_century_follows_the_day_before() {
        let mut last = civil_date(0);
        for day in 1..36_600 {
            let date = civil_date(day);
            let first_of_next = date.2 == 1
                && last.2 >= 28
                && (date.1 == last.1 + 1 || (date.1 == 1 && date.0 == last.0 + 1));
            let next_day = date.0 == last.0 && date.1 == last.1 && date.2 == last.2 + 1;
            assert!(first_of_next || next_day, "{last:?} then {date:?}");
            last = date;
        }
    }
}
