//! How the listener's thread waits: [`wait`] in poll(2), woken by datagrams, by time, or by a [`Bell`].

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::task::Wake;
use std::time::Instant;

/// Wakes a thread that waits: an eventfd(2). Also a waker, so that futures can be polled on that thread.
#[derive(Debug)]
pub(super) struct Bell(File);

impl Bell {
    #[expect(unsafe_code, reason = "eventfd(2) has no safe wrapper in std")]
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just given us this descriptor, and nobody else has it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self(File::from(fd)))
    }

    /// Wakes the thread now, or makes its next wait return at once.
    pub(super) fn ring(&self) {
        // It can only fail when it was rung 2^64 - 2 times without being heard; then it rings already.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    fn silence(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.ring();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.ring();
    }
}

/// Waits until a socket has something, the bell rings, or the deadline passes. Sets `ready` for sockets with
/// something, and leaves those that were set.
#[expect(unsafe_code, reason = "ppoll(2) has no safe wrapper in std")]
pub(super) fn wait(
    sockets: &[UdpSocket],
    bell: &Bell,
    deadline: Option<Instant>,
    ready: &mut [bool],
) -> io::Result<()> {
    let fd = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    let mut fds: Vec<libc::pollfd> = sockets.iter().map(|socket| fd(socket.as_raw_fd())).collect();
    fds.push(fd(bell.0.as_raw_fd()));
    let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let timeout = left.map(|left| libc::timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: left.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: `fds` and `timeout` live here and outlast the call; the signal mask is not changed.
    let count =
        unsafe { libc::ppoll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout, std::ptr::null()) };
    if count < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    for (ready, fd) in ready.iter_mut().zip(&fds) {
        *ready |= fd.revents != 0;
    }
    if fds.last().is_some_and(|bell| bell.revents != 0) {
        bell.silence();
    }
    Ok(())
}
