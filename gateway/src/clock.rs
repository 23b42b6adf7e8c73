//! Time that can be trusted on a machine without a clock of its own.
//!
//! Everything is stamped with the kernel's boot id and `CLOCK_MONOTONIC`; wall time is attached with what is known of
//! its quality and is never used for order. See `systemd-timesyncd`'s and chrony's use of `adjtimex(2)` for the source
//! of "synchronised".

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel's `/proc/sys/kernel/random/boot_id`: one per boot, never reused.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BootId(pub u128);

/// When something was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Stamp {
    /// The boot that `monotonic_ns` counts from.
    pub boot: BootId,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub monotonic_ns: u64,
    /// Wall time, once it is known.
    pub wall: Option<Wall>,
}

/// Wall time and how far it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Wall {
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub unix_ns: i64,
    /// Where the time came from.
    pub quality: WallQuality,
}

/// Where wall time came from, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum WallQuality {
    /// The clock was never set: it may be anything.
    None = 0,
    /// Restored from a file at boot: late by the time the power was off.
    File = 1,
    /// Read from a battery-backed clock.
    Rtc = 2,
    /// The kernel says that it is synchronised (NTP, PTP, GNSS by a time daemon).
    Ntp = 3,
    /// Taken from a GNSS device of our own.
    Gnss = 4,
}

impl WallQuality {
    /// The word used on every protocol.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::File => "file",
            Self::Rtc => "rtc",
            Self::Ntp => "ntp",
            Self::Gnss => "gnss",
        }
    }

    /// The inverse of `as u8`; unknown numbers are `None`.
    pub fn from_u8(number: u8) -> Self {
        match number {
            1 => Self::File,
            2 => Self::Rtc,
            3 => Self::Ntp,
            4 => Self::Gnss,
            _ => Self::None,
        }
    }
}

/// The machine's clocks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    boot: BootId,
}

impl Clock {
    /// Reads the boot id; where the kernel offers none, a random one stands in for this run.
    pub fn new() -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| BootId::parse(text.trim()))
            .unwrap_or_else(BootId::random);
        Self { boot }
    }

    /// The running boot.
    pub fn boot(&self) -> BootId {
        self.boot
    }

    /// A stamp for now.
    pub fn stamp(&self) -> Stamp {
        self.stamp_at(drivers::monotonic_ns())
    }

    /// A stamp for an earlier moment of this boot, with wall time by today's offset between the two clocks.
    pub fn stamp_at(&self, monotonic_ns: u64) -> Stamp {
        let now_ns = drivers::monotonic_ns();
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let unix_ns = wall.as_nanos() as i64 - now_ns.saturating_sub(monotonic_ns) as i64;
        let quality = recent_wall_quality(now_ns, unix_ns);
        Stamp { boot: self.boot, monotonic_ns, wall: Some(Wall { unix_ns, quality }) }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl BootId {
    /// Reads 32 hexadecimal digits, dashes allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(Self)
    }

    fn random() -> Self {
        let mut bytes = [0; 16];
        // Without a random source the process id and the time still tell two runs apart.
        if std::fs::File::open("/dev/urandom")
            .and_then(|mut f| std::io::Read::read_exact(&mut f, &mut bytes))
            .is_err()
        {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_nanos();
            bytes = (now ^ u128::from(std::process::id()) << 96).to_le_bytes();
        }
        Self(u128::from_le_bytes(bytes))
    }
}

impl fmt::Display for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// [`wall_quality`], asked at most ten times a second: it costs system calls, and every reading is stamped.
fn recent_wall_quality(now_ns: u64, unix_ns: i64) -> WallQuality {
    /// The tenth of a second it was asked in, and the answer in the lowest three bits; 0 before the first time.
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let tenth = now_ns / 100_000_000 + 1;
    let asked = ASKED.load(Ordering::Relaxed);
    if asked >> 3 == tenth {
        return WallQuality::from_u8((asked & 7) as u8);
    }
    let quality = wall_quality(unix_ns);
    ASKED.store(tenth << 3 | quality as u64, Ordering::Relaxed);
    quality
}

/// What the kernel says of its clock: synchronised, battery-backed, or set from a file at best.
fn wall_quality(unix_ns: i64) -> WallQuality {
    if is_synchronised() {
        WallQuality::Ntp
    } else if unix_ns < EARLIEST_PLAUSIBLE_NS {
        WallQuality::None
    } else if std::path::Path::new("/dev/rtc0").exists() {
        WallQuality::Rtc
    } else {
        WallQuality::File
    }
}

/// `adjtimex(2)`: the state is `TIME_ERROR` while `STA_UNSYNC` is set.
#[expect(unsafe_code, reason = "adjtimex(2) has no safe wrapper in a kept crate of ours")]
fn is_synchronised() -> bool {
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `modes` is 0, so the call only fills the struct that lives here.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0
}

/// 2026-01-01: before the software existed, no clock can be right.
const EARLIEST_PLAUSIBLE_NS: i64 = 1_767_225_600_000_000_000;
