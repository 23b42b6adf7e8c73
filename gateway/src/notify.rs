//! What systemd is told: ready, reloading, stopping, a line of state, and that we are alive (`sd_notify(3)`).

use std::time::Duration;

use sd_notify::NotifyState;

/// Everything serves.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// The configuration is read again; [`ready`] ends it.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        send(&[NotifyState::Reloading, now]);
    }
}

/// The end has begun.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// One line for `systemctl status`.
pub fn status(text: &str) {
    send(&[NotifyState::Status(text)]);
}

/// How often [`alive`] has to be called, half of what the unit allows; `None` without a watchdog.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Feeds the watchdog.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

fn send(states: &[NotifyState<'_>]) {
    // Without systemd there is no socket, and nobody to tell.
    let _ = sd_notify::notify(states);
}
