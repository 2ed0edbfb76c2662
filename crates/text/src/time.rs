//! The date and time a template may ask for, given by the caller.

/// A date and time of day as the user's clock on the wall shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    days_since_epoch: i64,
    seconds_of_day: i64,
}

impl LocalTime {
    /// Converts seconds since 1970-01-01T00:00:00 as local clocks count them: for another zone than
    /// UTC, add its offset first.
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Self {
            days_since_epoch: seconds.div_euclid(86_400),
            seconds_of_day: seconds.rem_euclid(86_400),
        }
    }

    /// Formats like C's `strftime` in the C locale, with `%-d` for numbers without padding. Codes
    /// it does not know stay as written.
    pub fn format(&self, format: &str) -> String {
        let mut text = String::new();
        let mut rest = format;
        while let Some((before, after)) = rest.split_once('%') {
            text.push_str(before);
            let unpadded = after.strip_prefix('-');
            let mut chars = unpadded.unwrap_or(after).chars();
            match chars
                .next()
                .and_then(|code| self.field(code, unpadded.is_none()))
            {
                Some(field) => {
                    text.push_str(&field);
                    rest = chars.as_str();
                }
                None => {
                    text.push('%');
                    rest = after;
                }
            }
        }
        text + rest
    }

    /// Returns what one code of a format stands for.
    fn field(&self, code: char, padded: bool) -> Option<String> {
        let (year, month, day) = self.date();
        let weekday = (self.days_since_epoch + 4).rem_euclid(7);
        let hour = self.seconds_of_day / 3600;
        let number = |value: i64, width: usize| {
            let width = if padded { width } else { 0 };
            Some(format!("{value:0width$}"))
        };
        match code {
            'Y' => number(year, 4),
            'y' => number(year.rem_euclid(100), 2),
            'm' => number(month, 2),
            'd' => number(day, 2),
            'H' => number(hour, 2),
            'I' => number((hour + 11) % 12 + 1, 2),
            'M' => number(self.seconds_of_day / 60 % 60, 2),
            'S' => number(self.seconds_of_day % 60, 2),
            'j' => number(
                day + DAYS_BEFORE[month as usize - 1] + leap_day(year, month),
                3,
            ),
            'e' => Some(format!("{day:2}")),
            'B' => Some(MONTHS[month as usize - 1].to_owned()),
            'b' | 'h' => Some(MONTHS[month as usize - 1][..3].to_owned()),
            'A' => Some(WEEKDAYS[weekday as usize].to_owned()),
            'a' => Some(WEEKDAYS[weekday as usize][..3].to_owned()),
            'p' => Some(if hour < 12 { "AM" } else { "PM" }.to_owned()),
            'F' => Some(self.format("%Y-%m-%d")),
            'D' => Some(self.format("%m/%d/%y")),
            'T' => Some(self.format("%H:%M:%S")),
            'R' => Some(self.format("%H:%M")),
            '%' => Some("%".to_owned()),
            _ => None,
        }
    }

    /// Returns year, month and day, by Howard Hinnant's `civil_from_days`
    /// (<https://howardhinnant.github.io/date_algorithms.html>): years are counted from March in
    /// eras of 400, so that the leap day comes last.
    fn date(&self) -> (i64, i64, i64) {
        let days = self.days_since_epoch + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        (year_of_era + era * 400 + i64::from(month <= 2), month, day)
    }
}

/// Returns 1 for the months that a leap day of their year comes before.
fn leap_day(year: i64, month: i64) -> i64 {
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    i64::from(leap && month > 2)
}

const DAYS_BEFORE: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];

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

const WEEKDAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_as_strftime_does() {
        // Expected values are those of C's strftime.
        let all = "%Y-%m-%d %H:%M:%S %y %-d %-m %e|%B %b %A %a %j %I %p %F %D %T %R %% %Q 100%";
        let check = |seconds, expected| {
            assert_eq!(LocalTime::from_unix_seconds(seconds).format(all), expected);
        };
        check(
            0,
            "1970-01-01 00:00:00 70 1 1  1|January Jan Thursday Thu 001 12 AM 1970-01-01 01/01/70 00:00:00 00:00 % %Q 100%",
        );
        check(
            1_709_210_096,
            "2024-02-29 12:34:56 24 29 2 29|February Feb Thursday Thu 060 12 PM 2024-02-29 02/29/24 12:34:56 12:34 % %Q 100%",
        );
        check(
            4_133_980_799,
            "2100-12-31 23:59:59 00 31 12 31|December Dec Friday Fri 365 11 PM 2100-12-31 12/31/00 23:59:59 23:59 % %Q 100%",
        );
        check(
            -1,
            "1969-12-31 23:59:59 69 31 12 31|December Dec Wednesday Wed 365 11 PM 1969-12-31 12/31/69 23:59:59 23:59 % %Q 100%",
        );
        for extreme in [i64::MIN, i64::MAX] {
            assert!(
                !LocalTime::from_unix_seconds(extreme)
                    .format("%F %j %A")
                    .is_empty()
            );
        }
    }
}
