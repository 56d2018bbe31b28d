//! The date in a prompt. Some tool formats and chat templates write today's date, so "now" is a
//! value that is passed in: tests and resumed runs give the same tokens on any day.

use std::fmt::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

/// A moment, in UTC, to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Moment {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub unix_seconds: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
const DAY: i64 = 86_400;

impl Moment {
    /// The system's clock. A clock before 1970 reads as 1970.
    pub fn now() -> Self {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self { unix_seconds: i64::try_from(seconds).unwrap_or(i64::MAX) }
    }

    /// Written by a `strftime` format. Known are `%a %A %b %B %d %e %H %I %j %m %M %p %S %y %Y %F %T %%`
    /// and the form without padding (`%-d`); anything else stays as it is.
    pub fn format(self, format: &str) -> String {
        let mut out = String::with_capacity(format.len() + 8);
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let Some(mut code) = chars.next() else {
                out.push('%');
                break;
            };
            let padded = code != '-';
            if !padded {
                match chars.next() {
                    Some(c) => code = c,
                    None => {
                        out.push_str("%-");
                        break;
                    }
                }
            }
            self.write_field(&mut out, code, padded);
        }
        out
    }

    fn write_field(self, out: &mut String, code: char, padded: bool) {
        let days = self.unix_seconds.div_euclid(DAY);
        let second = self.unix_seconds.rem_euclid(DAY);
        let (year, month, day) = civil(days);
        let (hour, minute) = (second / 3600, second / 60 % 60);
        let weekday = WEEKDAYS[usize::try_from(days.rem_euclid(7)).expect("0 to 6")];
        let name = MONTHS[usize::try_from(month - 1).expect("months are 1 to 12")];
        let mut pad = |value: i64, width: usize| {
            let width = if padded { width } else { 0 };
            write!(out, "{value:0width$}").expect("writing to a string can't fail");
        };
        match code {
            'd' => pad(day, 2),
            'm' => pad(month, 2),
            'Y' => pad(year, 4),
            'y' => pad(year.rem_euclid(100), 2),
            'H' => pad(hour, 2),
            'I' => pad((hour + 11) % 12 + 1, 2),
            'M' => pad(minute, 2),
            'S' => pad(second % 60, 2),
            'j' => pad(days - days_from_civil(year, 1, 1) + 1, 3),
            'e' => write!(out, "{day:2}").expect("writing to a string can't fail"),
            'a' => out.push_str(&weekday[..3]),
            'A' => out.push_str(weekday),
            'b' => out.push_str(&name[..3]),
            'B' => out.push_str(name),
            'p' => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            'F' => out.push_str(&self.format("%Y-%m-%d")),
            'T' => out.push_str(&self.format("%H:%M:%S")),
            '%' => out.push('%'),
            other => out.extend(['%', other]),
        }
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. The year is
/// taken to start in March, so that the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468; // days from 0000-03-01 to 1970-01-01
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates_are_written_as_strftime_writes_them() {
        let cases = [
            (0, "Thursday 01 Jan 1970 00:00:00 001 12 AM"),
            (951_782_399, "Monday 28 Feb 2000 23:59:59 059 11 PM"),
            (951_782_400, "Tuesday 29 Feb 2000 00:00:00 060 12 AM"),
            (1_795_392_000, "Monday 23 Nov 2026 00:00:00 327 12 AM"),
        ];
        for (unix_seconds, expected) in cases {
            assert_eq!(Moment { unix_seconds }.format("%A %d %b %Y %H:%M:%S %j %I %p"), expected);
        }
        assert_eq!(Moment { unix_seconds: 0 }.format("%-d.%-m. %q %% %"), "1.1. %q % %");
    }

    #[test]
    fn civil_dates_and_day_numbers_are_inverse() {
        for days in (-200_000..200_000).step_by(37) {
            let (year, month, day) = civil(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
    }
}
