//! Datagrams by the batch: recvmmsg(2) and sendmmsg(2) behind a safe face.
//!
//! One system call takes or sends up to [`BATCH`] datagrams; at a thousand clients that is where a server's time goes.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use socket2::{SockAddr, SockRef};

/// Takes datagrams, up to [`BATCH`] at once.
pub(super) struct Receiver {
    bytes: Box<[u8]>,
    addresses: Vec<libc::sockaddr_storage>,
    lengths: Vec<Length>,
    oversized: u64,
}

/// A datagram that has come.
pub(super) struct Received<'a> {
    pub(super) address: SocketAddr,
    pub(super) bytes: &'a [u8],
}

/// What the kernel said of a datagram.
#[derive(Clone, Copy, Default)]
struct Length {
    bytes: usize,
    is_cut: bool,
}

/// Sends datagrams, up to [`BATCH`] at once. No error is fatal: the datagram is lost, as the network may lose any.
pub(super) struct Sender {
    bytes: Vec<u8>,
    queue: Vec<(u16, SockAddr, usize)>,
    errors: u64,
}

impl Receiver {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; BATCH * MAX_DATAGRAM].into(),
            addresses: vec![zeroed_address(); BATCH],
            lengths: vec![Length::default(); BATCH],
            oversized: 0,
        }
    }

    /// Datagrams that were too large.
    pub(super) fn oversized(&self) -> u64 {
        self.oversized
    }

    /// Takes what is there, without waiting. Returns how many there are for [`Receiver::datagram`].
    #[expect(unsafe_code, reason = "recvmmsg(2) has no safe wrapper in a kept crate of ours")]
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|_| EMPTY_VECTOR);
        for (vector, buffer) in vectors.iter_mut().zip(self.bytes.chunks_exact_mut(MAX_DATAGRAM)) {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        }
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|_| empty_header());
        for ((header, vector), address) in headers.iter_mut().zip(&mut vectors).zip(&mut self.addresses) {
            header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every header points to a buffer, a vector and an address of ours that outlast the call, with their
        // true sizes; no two headers share one.
        let count = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(error),
            };
        }
        let count = count as usize;
        for (length, header) in self.lengths.iter_mut().zip(&headers).take(count) {
            *length = Length {
                bytes: (header.msg_len as usize).min(MAX_DATAGRAM),
                is_cut: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            };
            self.oversized += u64::from(length.is_cut);
        }
        Ok(count)
    }

    /// A datagram of the last batch; `None` for one that was too large.
    pub(super) fn datagram(&self, index: usize) -> Option<Received<'_>> {
        let length = self.lengths[index];
        let address = to_address(&self.addresses[index]).filter(|_| !length.is_cut)?;
        let begin = index * MAX_DATAGRAM;
        Some(Received { address, bytes: &self.bytes[begin..begin + length.bytes] })
    }
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { bytes: Vec::new(), queue: Vec::with_capacity(BATCH), errors: 0 }
    }

    /// Datagrams that the kernel did not take.
    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// Adds a datagram. `true` when the batch is full and is to be flushed.
    pub(super) fn add(&mut self, socket: u16, to: SocketAddr, bytes: &[u8]) -> bool {
        self.bytes.extend_from_slice(bytes);
        self.queue.push((socket, to.into(), self.bytes.len()));
        self.queue.len() == BATCH
    }

    /// Sends the batch.
    pub(super) fn flush(&mut self, sockets: &[UdpSocket]) {
        let mut first = 0;
        while first < self.queue.len() {
            let socket = self.queue[first].0;
            let same = self.queue[first..].iter().take_while(|(other, ..)| *other == socket).count();
            if let Some(socket) = sockets.get(usize::from(socket)) {
                self.send_run(socket, first, first + same);
            }
            first += same;
        }
        self.queue.clear();
        self.bytes.clear();
    }

    /// Sends a run of datagrams that leave by one socket.
    fn send_run(&mut self, socket: &UdpSocket, mut first: usize, end: usize) {
        let give_up = Instant::now() + FULL_FOR;
        while first < end {
            match self.send_some(socket, first, end) {
                Ok(count) => first += count.max(1),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The device's queue is full: it drains by itself.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < give_up => {
                    std::thread::yield_now();
                }
                // Port 0, unreachable, too long, forbidden by a filter: it concerns this datagram alone.
                Err(_) => {
                    self.errors += 1;
                    first += 1;
                }
            }
        }
    }

    #[expect(unsafe_code, reason = "sendmmsg(2) has no safe wrapper in a kept crate of ours")]
    fn send_some(&self, socket: &UdpSocket, first: usize, end: usize) -> io::Result<usize> {
        let mut vectors: [libc::iovec; BATCH] = std::array::from_fn(|_| EMPTY_VECTOR);
        let mut headers: [libc::mmsghdr; BATCH] = std::array::from_fn(|_| empty_header());
        let mut begin = first.checked_sub(1).map_or(0, |before| self.queue[before].2);
        let entries = self.queue[first..end].iter().zip(&mut vectors).zip(&mut headers);
        for (((_, address, stop), vector), header) in entries {
            let bytes = &self.bytes[begin..*stop];
            begin = *stop;
            *vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
            header.msg_hdr.msg_name = address.as_ptr().cast_mut().cast();
            header.msg_hdr.msg_namelen = address.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        let count = (end - first) as libc::c_uint;
        // SAFETY: the first `count` headers point to bytes, vectors and addresses that outlast the call and that the
        // kernel only reads.
        let sent =
            unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, libc::MSG_DONTWAIT) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
    }
}

/// Makes the receive buffer as large as we may, so that a burst of a thousand clients is not lost; returns its size.
/// Beyond `net.core.rmem_max` that takes the capability `CAP_NET_ADMIN`.
#[expect(unsafe_code, reason = "socket2 has no SO_RCVBUFFORCE")]
pub(super) fn enlarge_buffers(socket: &UdpSocket) -> usize {
    let wanted: libc::c_int = RECEIVE_BUFFER;
    // SAFETY: the option's value is an int that lives here, given with its size.
    let forced = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&wanted).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    let socket = SockRef::from(socket);
    if forced < 0 {
        // The kernel takes as much of it as it allows.
        let _ = socket.set_recv_buffer_size(wanted as usize);
    }
    socket.recv_buffer_size().unwrap_or_default()
}

/// Reads an address that the kernel wrote.
#[expect(unsafe_code, reason = "an address is one of several structs, told apart by its family")]
fn to_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    let storage_at = std::ptr::from_ref(storage);
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that this struct lies here; the storage is larger and stricter aligned.
            let address = unsafe { &*storage_at.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
            Some(SocketAddr::new(ip.into(), u16::from_be(address.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { &*storage_at.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            // The flow label is no part of who a peer is.
            Some(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[expect(unsafe_code, reason = "a socket address is plain numbers, of which zero is valid")]
fn zeroed_address() -> libc::sockaddr_storage {
    // SAFETY: all fields are integers.
    unsafe { std::mem::zeroed() }
}

#[expect(
    unsafe_code,
    reason = "a message header is plain numbers and pointers, of which zero and null are valid"
)]
fn empty_header() -> libc::mmsghdr {
    // SAFETY: all fields are integers or raw pointers.
    unsafe { std::mem::zeroed() }
}

const EMPTY_VECTOR: libc::iovec = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
/// Datagrams per system call.
const BATCH: usize = 64;
/// Larger ones are dropped: the largest block is 1024 bytes, and an Ethernet frame holds 1472.
const MAX_DATAGRAM: usize = 1536;
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// How long a full send queue is waited for before a datagram is given up.
const FULL_FOR: Duration = Duration::from_millis(5);
