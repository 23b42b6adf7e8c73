//! Ports that stay ours for as long as a test runs.
//!
//! Binding port 0 gives a port of the kernel's ephemeral range, and a peer that is stopped and started again would
//! find it taken: by another test, by an outgoing connection, or by a client that connects to itself (TCP's
//! simultaneous open on loopback). So ports are taken below that range, tried by binding, and held by a lock file
//! against other test processes.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, Hasher};
use std::net::{SocketAddr, TcpListener, UdpSocket};

/// A port on 127.0.0.1, free for TCP and UDP when it was taken, reserved until it is dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Reserves a free port.
    pub fn reserve() -> Self {
        let dir = std::env::temp_dir().join("tidegate-test-ports");
        fs::create_dir_all(&dir).expect("the temporary directory is writable");
        let start = RandomState::new().build_hasher().finish();
        (0..u64::from(LAST - FIRST))
            .map(|step| FIRST + ((start + step * 7) % u64::from(LAST - FIRST)) as u16)
            .find_map(|number| {
                let lock = File::create(dir.join(number.to_string())).ok()?;
                match lock.try_lock() {
                    Ok(()) => {}
                    Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return None,
                }
                let address = SocketAddr::from(([127, 0, 0, 1], number));
                let is_free = TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok();
                is_free.then_some(Self { number, _lock: lock })
            })
            .expect("one of 12,000 ports is free")
    }

    /// The port's number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.number))
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.number.fmt(f)
    }
}

/// The kernel's ephemeral ports begin at 32768.
const FIRST: u16 = 20_000;
const LAST: u16 = 32_000;
