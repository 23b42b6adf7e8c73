//! Where the clocks are read: the kernel, or what a test says.

use std::time::{SystemTime, UNIX_EPOCH};

/// What the kernel says of its clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kernel {
    /// A time daemon keeps it right.
    pub is_synchronised: bool,
    /// Then: how far off it may be, either way.
    pub error_ns: u64,
    /// It was set from a battery-backed clock at boot.
    pub is_from_rtc: bool,
}

/// The clocks of a machine.
pub trait Sources: Send + Sync {
    /// `CLOCK_MONOTONIC`.
    fn monotonic_ns(&self) -> u64;
    /// `CLOCK_REALTIME`, in nanoseconds since 1970.
    fn system_ns(&self) -> i64;
    /// What the second is worth.
    fn kernel(&self) -> Kernel;
}

/// This machine's.
#[derive(Debug)]
pub(super) struct System;

impl Sources for System {
    fn monotonic_ns(&self) -> u64 {
        drivers::monotonic_ns()
    }

    fn system_ns(&self) -> i64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }

    fn kernel(&self) -> Kernel {
        let (is_synchronised, error_ns) = synchronisation();
        // The kernel sets its clock from an RTC at boot and remembers which one it was.
        let is_from_rtc = !is_synchronised
            && std::fs::read("/sys/class/rtc/rtc0/hctosys").is_ok_and(|text| text.starts_with(b"1"));
        Kernel { is_synchronised, error_ns, is_from_rtc }
    }
}

/// `adjtimex(2)`: the state is `TIME_ERROR` while `STA_UNSYNC` is set; `maxerror` (µs) is the bound that grows between
/// two corrections, `esterror` what the daemon believes.
#[expect(unsafe_code, reason = "adjtimex(2) has no safe wrapper in a kept crate of ours")]
fn synchronisation() -> (bool, u64) {
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: `modes` is 0, so the call only fills the struct that lives here.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    let is_synchronised = state >= 0 && state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0;
    let error_us = timex.maxerror.max(timex.esterror).max(LEAST_ERROR_US);
    (is_synchronised, error_us.unsigned_abs() as u64 * 1000)
}

/// Daemons that tell the kernel no error are not perfect for it.
const LEAST_ERROR_US: libc::c_long = 1000;

#[cfg(test)]
pub use simulated::Simulated;

#[cfg(test)]
mod simulated {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::{Kernel, Sources};

    /// Clocks that a test moves. Clones are the same clocks.
    #[derive(Debug, Clone, Default)]
    pub struct Simulated(Arc<Mutex<(u64, i64, Kernel)>>);

    impl Simulated {
        /// Time passes on both clocks.
        pub fn advance(&self, by: Duration) {
            let mut clocks = self.0.lock().unwrap();
            clocks.0 += by.as_nanos() as u64;
            clocks.1 += by.as_nanos() as i64;
        }

        /// Somebody sets the system's clock.
        pub fn set_system(&self, unix_ns: i64) {
            self.0.lock().unwrap().1 = unix_ns;
        }

        /// A time daemon comes or goes.
        pub fn set_kernel(&self, kernel: Kernel) {
            self.0.lock().unwrap().2 = kernel;
        }
    }

    impl Sources for Simulated {
        fn monotonic_ns(&self) -> u64 {
            self.0.lock().unwrap().0
        }

        fn system_ns(&self) -> i64 {
            self.0.lock().unwrap().1
        }

        fn kernel(&self) -> Kernel {
            self.0.lock().unwrap().2
        }
    }
}
