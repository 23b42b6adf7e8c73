//! Time that can be trusted on a machine without a clock of its own.
//!
//! Everything is stamped with the kernel's boot id and `CLOCK_MONOTONIC`; wall time is attached with what is known of
//! its quality and is never used for order. The system's clock counts as synchronised when the kernel says so
//! (`adjtimex(2)`; `systemd-timesyncd` and chrony with `rtcsync` tell it). While it is not, a GNSS receiver of ours
//! may know better: then wall time is monotonic time plus an offset kept here, and the system's clock stays untouched.

mod floor;
mod receiver;
mod sources;
pub mod watch;

use std::fmt;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use drivers::gnss::TimeFix;

use self::floor::{BUILT_NS, Floor};
use self::receiver::Receiver;
use self::sources::{Kernel, Sources, System};

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
    /// How far off that may be, either way; `None` where nobody can say.
    pub error_ns: Option<u64>,
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

/// What is known of wall time at one moment: monotonic time plus an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Wall time minus monotonic time, in nanoseconds.
    pub offset_ns: i64,
    /// How far off that may be, either way.
    pub error_ns: Option<u64>,
    /// Where the time came from.
    pub quality: WallQuality,
}

/// The machine's clocks.
#[derive(Clone, Copy)]
pub struct Clock(&'static Keeper);

/// What stands behind a [`Clock`]; lives as long as the process, so that a clock is copied like a number.
struct Keeper {
    boot: BootId,
    sources: Box<dyn Sources>,
    /// Whoever stamps asks here, from every thread; held for a few comparisons.
    state: Mutex<State>,
    floor: Floor,
}

struct State {
    kernel: Kernel,
    /// When the kernel was asked last; it costs system calls, and every reading is stamped.
    asked_ns: Option<u64>,
    receiver: Receiver,
}

impl Clock {
    /// This machine's clocks; the same ones whenever it is called.
    pub fn new() -> Self {
        Self(&SYSTEM)
    }

    /// Clocks that a test moves.
    #[cfg(test)]
    pub fn simulated(sources: impl Sources + 'static) -> Self {
        Self(Box::leak(Box::new(Keeper::new(BootId::random(), Box::new(sources)))))
    }

    /// This machine's clocks as of another boot.
    #[cfg(test)]
    pub fn rebooted() -> Self {
        Self::simulated(sources::System)
    }

    /// The running boot.
    pub fn boot(self) -> BootId {
        self.0.boot
    }

    /// A stamp for now.
    pub fn stamp(self) -> Stamp {
        self.stamp_at(self.0.sources.monotonic_ns())
    }

    /// A stamp for an earlier moment of this boot, with wall time by today's offset between the two clocks.
    pub fn stamp_at(self, monotonic_ns: u64) -> Stamp {
        let Known { offset_ns, error_ns, quality } = self.known();
        let unix_ns = (monotonic_ns as i64).saturating_add(offset_ns);
        Stamp { boot: self.0.boot, monotonic_ns, wall: Some(Wall { unix_ns, error_ns, quality }) }
    }

    /// What is known of wall time now.
    pub fn known(self) -> Known {
        let now_ns = self.0.sources.monotonic_ns();
        let unix_ns = self.0.sources.system_ns();
        let mut state = self.0.lock();
        if state.asked_ns.is_none_or(|asked_ns| now_ns.abs_diff(asked_ns) > ASK_AGAIN_NS) {
            state.kernel = self.0.sources.kernel();
            state.asked_ns = Some(now_ns);
        }
        let (quality, error_ns) = judge(state.kernel, unix_ns);
        if quality < WallQuality::Ntp
            && let Some(known) = state.receiver.known(now_ns)
        {
            return known;
        }
        Known { offset_ns: unix_ns.saturating_sub(now_ns as i64), error_ns, quality }
    }

    /// A GNSS receiver of ours told the time. It counts while the kernel is not synchronised, and only once a few
    /// moments in a row agree.
    pub fn take_fix(self, fix: TimeFix) {
        self.0.lock().receiver.take(fix, BUILT_NS);
    }

    /// A moment that has passed for certain: TLS is never checked as if it were earlier.
    pub fn raise_floor(self, unix_ns: i64) {
        self.0.floor.raise(unix_ns, self.0.sources.monotonic_ns());
    }

    /// The time to check certificates by: what the clock says, but not before the floor. A machine that boots in 1970
    /// thus still connects, as long as what it connects to was certified before the newest moment it remembers.
    pub fn tls_time(self) -> Duration {
        let wall_ns = self.stamp().wall.map_or(0, |wall| wall.unix_ns);
        let floor_ns = self.0.floor.at(self.0.sources.monotonic_ns());
        Duration::from_nanos(wall_ns.max(floor_ns).max(0) as u64)
    }
}

/// [`Clock::tls_time`] of this machine, since 1970: for TLS configurations, which are made far from any clock.
pub fn floor_time() -> Duration {
    Clock::new().tls_time()
}

impl Keeper {
    fn new(boot: BootId, sources: Box<dyn Sources>) -> Self {
        let state = State { kernel: Kernel::default(), asked_ns: None, receiver: Receiver::default() };
        Self { boot, sources, state: Mutex::new(state), floor: Floor::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clock").field(&self.0.boot).finish()
    }
}

impl BootId {
    /// Reads 32 hexadecimal digits, dashes allowed.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(Self)
    }

    /// The kernel's; where it offers none, a random one stands in for this run.
    fn read() -> Self {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .ok()
            .and_then(|text| Self::parse(text.trim()))
            .unwrap_or_else(Self::random)
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

/// What the system's clock is worth, and how far off it may be.
fn judge(kernel: Kernel, unix_ns: i64) -> (WallQuality, Option<u64>) {
    // Even one that says that it is synchronised: the program was built later.
    if unix_ns < BUILT_NS {
        (WallQuality::None, None)
    } else if kernel.is_synchronised {
        (WallQuality::Ntp, Some(kernel.error_ns))
    } else if kernel.is_from_rtc {
        (WallQuality::Rtc, Some(RTC_ERROR_NS))
    } else {
        // Nobody knows how long the power was off.
        (WallQuality::File, None)
    }
}

static SYSTEM: LazyLock<Keeper> = LazyLock::new(|| Keeper::new(BootId::read(), Box::new(System)));

/// The kernel is asked at most ten times a second.
const ASK_AGAIN_NS: u64 = 100_000_000;
/// Some 20 ppm over half a year without power.
const RTC_ERROR_NS: u64 = 300_000_000_000;

#[cfg(test)]
mod tests {
    use super::sources::Simulated;
    use super::*;

    const S: i64 = 1_000_000_000;
    /// Behind every build of this program's first years.
    const NOW: i64 = 4_000_000_000 * S;

    fn quality_of(kernel: Kernel, unix_ns: i64) -> (WallQuality, Option<u64>) {
        let clocks = Simulated::default();
        clocks.set_system(unix_ns);
        clocks.set_kernel(kernel);
        let wall = Clock::simulated(clocks).stamp().wall.unwrap();
        assert_eq!(wall.unix_ns, unix_ns);
        (wall.quality, wall.error_ns)
    }

    #[test]
    fn the_quality_is_what_the_kernel_says_unless_it_cannot_be() {
        let synchronised = Kernel { is_synchronised: true, error_ns: 7, is_from_rtc: false };
        let from_rtc = Kernel { is_from_rtc: true, ..Kernel::default() };
        assert_eq!(quality_of(synchronised, NOW), (WallQuality::Ntp, Some(7)));
        assert_eq!(quality_of(from_rtc, NOW), (WallQuality::Rtc, Some(RTC_ERROR_NS)));
        assert_eq!(quality_of(Kernel::default(), NOW), (WallQuality::File, None));
        for kernel in [synchronised, from_rtc, Kernel::default()] {
            assert_eq!(quality_of(kernel, 1000 * S), (WallQuality::None, None));
        }
    }

    #[test]
    fn a_receiver_gives_the_time_while_the_kernel_is_not_synchronised() {
        let clocks = Simulated::default();
        clocks.set_system(77 * S);
        let clock = Clock::simulated(clocks.clone());
        assert_eq!(clock.stamp().wall.unwrap().quality, WallQuality::None);
        for second in 0..4 {
            clocks.advance(Duration::from_secs(1));
            let at_ns = clock.stamp().monotonic_ns;
            clock.take_fix(TimeFix { unix_ns: NOW + second * S, at_ns, error_ns: 500_000_000 });
        }
        let wall = clock.stamp().wall.unwrap();
        assert_eq!((wall.unix_ns, wall.quality), (NOW + 3 * S, WallQuality::Gnss));
        // What was measured before is dated by the same offset.
        let earlier_ns = clock.stamp().monotonic_ns - 2_000_000_000;
        assert_eq!(clock.stamp_at(earlier_ns).wall.unwrap().unix_ns, NOW + S);
        // A stepped system clock changes nothing as long as it is not synchronised.
        clocks.set_system(NOW - 1000 * S);
        assert_eq!(clock.stamp().wall.unwrap().unix_ns, NOW + 3 * S);
        clocks.advance(Duration::from_secs(1));
        clocks.set_kernel(Kernel { is_synchronised: true, error_ns: 5, is_from_rtc: false });
        clocks.set_system(NOW + 4 * S + 1);
        let wall = clock.stamp().wall.unwrap();
        assert_eq!((wall.unix_ns, wall.quality), (NOW + 4 * S + 1, WallQuality::Ntp));
    }

    #[test]
    fn tls_never_sees_a_time_before_the_build_or_the_newest_known_moment() {
        let clocks = Simulated::default();
        clocks.set_system(0);
        let clock = Clock::simulated(clocks.clone());
        let at = |ns: i64| Duration::from_nanos(ns as u64);
        assert_eq!(clock.tls_time(), at(BUILT_NS));
        clock.raise_floor(NOW);
        assert_eq!(clock.tls_time(), at(NOW));
        // It passes like any time, and never goes back.
        clocks.advance(Duration::from_secs(5));
        clock.raise_floor(NOW - 100 * S);
        assert_eq!(clock.tls_time(), at(NOW + 5 * S));
        clocks.set_system(NOW + 1000 * S);
        assert_eq!(clock.tls_time(), at(NOW + 1000 * S));
    }
}
