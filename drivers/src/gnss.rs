//! The time that a GNSS receiver tells, from its NMEA 0183 sentences. Pure: sentences and arrival times in.
//!
//! RMC and ZDA are the sentences with a date. RMC says itself whether the receiver has a fix; ZDA does not, and many
//! receivers send it from a clock of their own, so beside a receiver that says that it has no fix it is not believed.

/// A moment as a receiver told it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeFix {
    /// UTC, in nanoseconds since 1970.
    pub unix_ns: i64,
    /// `CLOCK_MONOTONIC` when it arrived.
    pub at_ns: u64,
    /// How far off it may be, either way: what lies between the moment and the end of its sentence's arrival.
    pub error_ns: u64,
}

/// Follows a receiver's sentences.
#[derive(Debug, Clone, Default)]
pub struct TimeReader {
    /// Whether the last sentence that speaks of a fix said that there is one; `None` before any did.
    has_fix: Option<bool>,
    last_unix_ns: i64,
    fix: Option<TimeFix>,
}

impl TimeReader {
    /// Takes a sentence without `$` and checksum, which was right, and when it came.
    pub fn read(&mut self, body: &str, at_ns: u64) {
        let mut fields = body.split(',');
        let address = fields.next().unwrap_or_default();
        match address.get(2..) {
            Some("RMC") => {
                let clock = fields.next().and_then(time_of_day_ns);
                let has_fix = fields.next() == Some("A");
                self.has_fix = Some(has_fix);
                let days = fields.nth(6).and_then(short_date);
                if has_fix {
                    self.take(days, clock, at_ns);
                }
            }
            Some("GGA") => {
                self.has_fix = Some(fields.nth(5).is_some_and(|quality| !matches!(quality, "" | "0")));
            }
            Some("ZDA") => {
                let clock = fields.next().and_then(time_of_day_ns);
                let mut number = || fields.next().and_then(|field| field.parse::<u16>().ok());
                let (day, month, year) = (number(), number(), number());
                if self.has_fix != Some(false) {
                    let days = day.zip(month).zip(year).and_then(|((d, m), y)| days_since_1970(y, m, d));
                    self.take(days, clock, at_ns);
                }
            }
            _ => {}
        }
    }

    /// The newest moment told since this was last asked.
    pub fn take_fix(&mut self) -> Option<TimeFix> {
        self.fix.take()
    }

    fn take(&mut self, days: Option<i64>, time_of_day_ns: Option<i64>, at_ns: u64) {
        let Some((days, time_of_day_ns)) = days.zip(time_of_day_ns) else { return };
        let unix_ns = days * DAY_NS + time_of_day_ns;
        // RMC and ZDA of one second say the same thing twice.
        if unix_ns != self.last_unix_ns {
            self.last_unix_ns = unix_ns;
            self.fix = Some(TimeFix { unix_ns, at_ns, error_ns: SERIAL_ERROR_NS });
        }
    }
}

/// `hhmmss` or `hhmmss.sss`. A leap second is not counted in the time since 1970 and is left out.
fn time_of_day_ns(field: &str) -> Option<i64> {
    let (whole, fraction) = field.split_once('.').unwrap_or((field, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() != 6 || !is_digits(whole) || !is_digits(fraction) || fraction.len() > 9 {
        return None;
    }
    let two = |at: usize| whole[at..at + 2].parse::<i64>().ok();
    let (hours, minutes, seconds) = (two(0)?, two(2)?, two(4)?);
    if hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let fraction_ns = format!("{fraction:0<9}").parse::<i64>().ok()?;
    Some(((hours * 60 + minutes) * 60 + seconds) * 1_000_000_000 + fraction_ns)
}

/// `ddmmyy`; GPS time began in 1980.
fn short_date(field: &str) -> Option<i64> {
    if field.len() != 6 || !field.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let two = |at: usize| field[at..at + 2].parse::<u16>().ok();
    let (day, month, year) = (two(0)?, two(2)?, two(4)?);
    days_since_1970(if year >= 80 { 1900 + year } else { 2000 + year }, month, day)
}

/// Days of the proleptic Gregorian calendar, for years whose days fit.
fn days_since_1970(year: u16, month: u16, day: u16) -> Option<i64> {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let length = match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1970..=2200).contains(&year) || !(1..=length).contains(&day) {
        return None;
    }
    // The year begins in March, so that the leap day is its last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (year, month, day) = (i64::from(year), i64::from(month), i64::from(day));
    Some(year * 365 + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1 - DAYS_TO_1970)
}

/// From 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;
const DAY_NS: i64 = 86_400_000_000_000;

/// A receiver on a plain serial line begins its sentences some 50 to 500 ms behind the second they speak of.
const SERIAL_ERROR_NS: u64 = 500_000_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn after(sentences: &[&str]) -> Option<i64> {
        let mut reader = TimeReader::default();
        for body in sentences {
            reader.read(body, 7);
        }
        reader.take_fix().map(|fix| fix.unix_ns)
    }

    #[test]
    fn rmc_and_zda_tell_the_same_time() {
        // 2026-11-21T06:13:09.25Z
        let expected = Some(1_795_241_589_250_000_000);
        assert_eq!(after(&["GPRMC,061309.25,A,4916.45,N,12311.12,W,000.5,054.7,211126,020.3,E,A"]), expected);
        assert_eq!(after(&["GNZDA,061309.250,21,11,2026,00,00"]), expected);
        // The example of gpsd's documentation, before the turn of the century.
        assert_eq!(
            after(&["GPRMC,225446.33,A,4916.45,N,12311.12,W,000.5,054.7,191194,020.3,E"]),
            Some(785_285_686_330_000_000)
        );
        assert_eq!(after(&["GPZDA,235959,29,02,2028,,"]), Some(1_835_481_599_000_000_000));
    }

    #[test]
    fn one_second_is_told_once() {
        let mut reader = TimeReader::default();
        reader.read("GPRMC,061309.00,A,,,,,,,211126,,,A", 5);
        assert_eq!(reader.take_fix().map(|fix| fix.at_ns), Some(5));
        reader.read("GPZDA,061309.00,21,11,2026,00,00", 6);
        assert_eq!(reader.take_fix(), None);
        reader.read("GPZDA,061310.00,21,11,2026,00,00", 7);
        assert_eq!(reader.take_fix().map(|fix| fix.at_ns), Some(7));
    }

    #[test]
    fn a_receiver_without_a_fix_tells_no_time() {
        assert_eq!(after(&["GPRMC,061309.00,V,,,,,,,211126,,,N"]), None);
        assert_eq!(after(&["GPRMC,061309.00,V,,,,,,,211126,,,N", "GPZDA,061309.00,21,11,2026,00,00"]), None);
        let lost = "GPGGA,061309.00,,,,,0,00,,,M,,M,,";
        assert_eq!(after(&[lost, "GPZDA,061309.00,21,11,2026,00,00"]), None);
        let found = "GPGGA,061309.00,4916.45,N,12311.12,W,1,8,1.0,61.7,M,55.2,M,,";
        assert!(after(&[lost, found, "GPZDA,061310.00,21,11,2026,00,00"]).is_some());
    }

    #[test]
    fn what_is_no_time_is_none() {
        for bad in [
            "GPZDA,061309,31,11,2026,00,00",
            "GPZDA,061309,29,02,2026,00,00",
            "GPZDA,240000,21,11,2026,00,00",
            "GPZDA,235960,31,12,2026,00,00",
            "GPZDA,06130,21,11,2026,00,00",
            "GPZDA,061309.1234567890,21,11,2026,00,00",
            "GPZDA,061309,21,11,65535,00,00",
            "GPZDA,061309,21,11,,00,00",
            "GPZDA",
            "GPRMC,061309.00,A,,,,,,,2111,,,A",
            "GPRMC,061309.00,A",
        ] {
            assert_eq!(after(&[bad]), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn days_count_up_by_one(days in 0_u32..80_000) {
            // Walked from one known day, month by month.
            let (mut year, mut month, mut left) = (1970_u16, 1_u16, days);
            let length = |year: u16, month: u16| (28..=31).rev().find(|day| days_since_1970(year, month, *day).is_some());
            while left >= u32::from(length(year, month).unwrap()) {
                left -= u32::from(length(year, month).unwrap());
                (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            }
            prop_assert_eq!(days_since_1970(year, month, left as u16 + 1), Some(i64::from(days)));
        }

        #[test]
        fn no_sentence_makes_it_fail(kind in "(RMC|ZDA|GGA)", fields in "[-0-9A-Zä.,]{0,90}") {
            TimeReader::default().read(&format!("GP{kind},{fields}"), 0);
        }
    }
}
