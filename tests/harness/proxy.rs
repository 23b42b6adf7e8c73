//! A TCP proxy that does what networks do: refuse, hang, cut, crawl, swallow, and come back.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::{Port, Rng, wait_until};

/// Stands between a client and `target`; passes everything until told otherwise.
#[derive(Debug)]
pub struct FaultProxy {
    port: Port,
    orders: Orders,
    counters: Arc<Counters>,
    flapper: Option<(Sender<()>, JoinHandle<()>)>,
}

/// How the proxy treats the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Forward both ways.
    Pass,
    /// Nobody listens: new connections are refused; open ones go on.
    Refuse,
    /// New connections are accepted and hear nothing, ever; open ones go on.
    Hang,
    /// Nothing moves on any connection, and nobody is told: no FIN, no RST.
    Blackhole,
    /// Each direction of each connection carries at most so many bytes per second.
    Slow(u32),
    /// Each connection, open ones too, is reset as soon as it has carried so many bytes, both ways together: a few
    /// hundred end a TLS handshake in its middle.
    ResetAfter(u64),
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicU64,
    cut: AtomicU64,
    forwarded: AtomicU64,
    open: AtomicU64,
}

/// The way to the proxy's one thread: an order, and a byte that wakes it.
#[derive(Debug, Clone)]
struct Orders {
    queue: Sender<(Order, SyncSender<()>)>,
    // Shared by the proxy's handle and its flapper; held for one write.
    wake: Arc<Mutex<UnixStream>>,
}

#[derive(Debug)]
enum Order {
    Become(Mode),
    Cut,
    Stop,
}

impl FaultProxy {
    /// Listens on a port of its own and forwards to `target`.
    pub fn start(target: SocketAddr) -> Self {
        let port = Port::reserve();
        // Unbounded, but each sender waits until its order has been carried out: as long as the senders are many.
        let (queue, inbox) = channel();
        let (wake, woken) = UnixStream::pair().expect("a socket pair");
        woken.set_nonblocking(true).expect("a socket can be non-blocking");
        let counters = Arc::new(Counters::default());
        let mut wire = Wire {
            address: port.address(),
            target,
            mode: Mode::Pass,
            listener: None,
            links: Vec::new(),
            woken,
            inbox,
            counters: Arc::clone(&counters),
        };
        wire.listen();
        thread::spawn(move || wire.run());
        Self { port, orders: Orders { queue, wake: Arc::new(Mutex::new(wake)) }, counters, flapper: None }
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Changes the mode; it holds when this returns.
    pub fn set(&self, mode: Mode) {
        self.orders.give(Order::Become(mode));
    }

    /// Ends every open connection with a reset; those still unanswered data are lost.
    pub fn cut(&self) {
        self.orders.give(Order::Cut);
    }

    /// Cuts again and again after a random time from `low` to `high`, and refuses connections for a part of that time
    /// after every third cut, until [`FaultProxy::calm`].
    pub fn flap(&mut self, mut rng: Rng, low: Duration, high: Duration) {
        self.calm();
        let orders = self.orders.clone();
        let (stop, stopped) = channel::<()>();
        let thread = thread::spawn(move || {
            let pause = |time| matches!(stopped.recv_timeout(time), Err(RecvTimeoutError::Timeout));
            while pause(rng.between(low, high)) {
                if rng.below(3) == 0 {
                    orders.give(Order::Become(Mode::Refuse));
                    orders.give(Order::Cut);
                    let goes_on = pause(rng.between(low / 4, high / 4));
                    orders.give(Order::Become(Mode::Pass));
                    if !goes_on {
                        return;
                    }
                } else {
                    orders.give(Order::Cut);
                }
            }
        });
        self.flapper = Some((stop, thread));
    }

    /// Ends the flapping; afterwards the proxy passes.
    pub fn calm(&mut self) {
        if let Some((stop, thread)) = self.flapper.take() {
            drop(stop);
            thread.join().expect("the flapper does not panic");
        }
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    /// Connections cut so far.
    pub fn cuts(&self) -> u64 {
        self.counters.cut.load(Ordering::Relaxed)
    }

    /// Connections open now, hanging ones included.
    pub fn open(&self) -> u64 {
        self.counters.open.load(Ordering::Relaxed)
    }

    /// Bytes forwarded so far, both ways.
    pub fn forwarded(&self) -> u64 {
        self.counters.forwarded.load(Ordering::Relaxed)
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.calm();
        self.orders.give(Order::Stop);
    }
}

impl Orders {
    fn give(&self, order: Order) {
        let (done, is_done) = sync_channel(1);
        // Once the thread has ended there is nothing left to change.
        if self.queue.send((order, done)).is_ok() {
            let mut wake = self.wake.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = wake.write_all(&[1]);
            drop(wake);
            let _ = is_done.recv();
        }
    }
}

/// Everything the proxy's thread owns.
struct Wire {
    address: SocketAddr,
    target: SocketAddr,
    mode: Mode,
    listener: Option<TcpListener>,
    links: Vec<Link>,
    woken: UnixStream,
    inbox: Receiver<(Order, SyncSender<()>)>,
    counters: Arc<Counters>,
}

/// One client's connection; without a server side it hangs.
struct Link {
    client: TcpStream,
    server: Option<TcpStream>,
    up: Flow,
    down: Flow,
    carried: u64,
}

/// What was read from one side and not yet written to the other: at most [`FLOW_LIMIT`] bytes, then reading stops.
#[derive(Default)]
struct Flow {
    held: Vec<u8>,
    has_ended: bool,
}

impl Wire {
    fn run(mut self) {
        loop {
            self.counters.open.store(self.links.len() as u64, Ordering::Relaxed);
            let is_slow = matches!(self.mode, Mode::Slow(_));
            self.poll(is_slow);
            let mut byte = [0; 16];
            while self.woken.read(&mut byte).is_ok_and(|n| n > 0) {}
            while let Ok((order, done)) = self.inbox.try_recv() {
                match order {
                    Order::Become(mode) => self.become_mode(mode),
                    Order::Cut => self.cut(),
                    Order::Stop => {
                        let _ = done.send(());
                        return;
                    }
                }
                let _ = done.send(());
            }
            self.accept();
            let budget = match self.mode {
                Mode::Blackhole => continue,
                Mode::Slow(rate) => (rate / TURNS_PER_SECOND).max(1) as usize,
                // No more than what it still may carry, so that it ends where it was said to.
                Mode::ResetAfter(limit) => (limit as usize / 4).clamp(1, FLOW_LIMIT),
                _ => FLOW_LIMIT,
            };
            let counters = &self.counters;
            let limit = if let Mode::ResetAfter(limit) = self.mode { limit } else { u64::MAX };
            self.links.retain_mut(|link| {
                let goes_on = link.pump(budget, counters);
                if link.carried < limit {
                    return goes_on;
                }
                counters.cut.fetch_add(1, Ordering::Relaxed);
                link.reset();
                false
            });
        }
    }

    fn become_mode(&mut self, mode: Mode) {
        self.mode = mode;
        if mode == Mode::Refuse {
            self.listener = None;
        } else if self.listener.is_none() {
            self.listen();
        }
    }

    fn listen(&mut self) {
        // A process being started holds a copy of every socket, closed ones too, from its fork to its exec: a moment.
        let listener = wait_until(Duration::from_secs(5), || TcpListener::bind(self.address).ok());
        let listener = listener.expect("the port is reserved for this proxy");
        listener.set_nonblocking(true).expect("a listener can be non-blocking");
        self.listener = Some(listener);
    }

    fn cut(&mut self) {
        self.accept();
        for link in self.links.drain(..) {
            self.counters.cut.fetch_add(1, Ordering::Relaxed);
            link.reset();
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        while let Ok((client, _)) = listener.accept() {
            self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            let server = if self.mode == Mode::Hang {
                None
            } else {
                match TcpStream::connect(self.target) {
                    Ok(server) => Some(server),
                    Err(_) => continue,
                }
            };
            for stream in [Some(&client), server.as_ref()].into_iter().flatten() {
                let _ = stream.set_nonblocking(true);
                let _ = stream.set_nodelay(true);
            }
            self.links.push(Link { client, server, up: Flow::default(), down: Flow::default(), carried: 0 });
        }
    }

    /// Waits until something can move; in slow mode it is the clock that lets things move.
    #[expect(unsafe_code, reason = "std has no poll")]
    fn poll(&self, is_slow: bool) {
        let watch = |fd, events| libc::pollfd { fd, events, revents: 0 };
        let mut set = vec![watch(self.woken.as_raw_fd(), libc::POLLIN)];
        set.extend(self.listener.iter().map(|listener| watch(listener.as_raw_fd(), libc::POLLIN)));
        if !is_slow && self.mode != Mode::Blackhole {
            for link in &self.links {
                let Some(server) = &link.server else {
                    set.push(watch(link.client.as_raw_fd(), libc::POLLIN));
                    continue;
                };
                set.push(watch(link.client.as_raw_fd(), link.up.wants_in() | link.down.wants_out()));
                set.push(watch(server.as_raw_fd(), link.down.wants_in() | link.up.wants_out()));
            }
        }
        let timeout = if is_slow { 1000 / TURNS_PER_SECOND as i32 } else { -1 };
        // SAFETY: the pointer and the length are those of one live vector.
        unsafe { libc::poll(set.as_mut_ptr(), set.len() as libc::nfds_t, timeout) };
    }
}

impl Link {
    /// Moves at most `budget` bytes each way; `false` when both sides are done with each other.
    fn pump(&mut self, budget: usize, counters: &Counters) -> bool {
        let Some(server) = &mut self.server else {
            let mut ignored = [0; 1024];
            return !matches!(self.client.read(&mut ignored), Ok(0)) || self.client.take_error().is_err();
        };
        let up = self.up.carry(&mut self.client, server, budget);
        let down = self.down.carry(server, &mut self.client, budget);
        let carried = up.unwrap_or(0) + down.unwrap_or(0);
        counters.forwarded.fetch_add(carried, Ordering::Relaxed);
        self.carried += carried;
        let is_over = |flow: &Flow| flow.has_ended && flow.held.is_empty();
        up.is_some() && down.is_some() && !(is_over(&self.up) && is_over(&self.down))
    }
}

impl Link {
    /// Makes the close that follows a reset.
    fn reset(&self) {
        for stream in [Some(&self.client), self.server.as_ref()].into_iter().flatten() {
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Flow {
    fn wants_in(&self) -> i16 {
        if self.has_ended || self.held.len() >= FLOW_LIMIT { 0 } else { libc::POLLIN }
    }

    fn wants_out(&self) -> i16 {
        if self.held.is_empty() { 0 } else { libc::POLLOUT }
    }

    /// Reads from one side and writes to the other; the bytes written, or `None` when a side is broken.
    fn carry(&mut self, from: &mut TcpStream, to: &mut TcpStream, budget: usize) -> Option<u64> {
        let mut piece = [0; 16 * 1024];
        let mut allowed = budget.min(FLOW_LIMIT.saturating_sub(self.held.len()));
        while allowed > 0 && !self.has_ended {
            let room = piece.len().min(allowed);
            match from.read(&mut piece[..room]) {
                Ok(0) => self.has_ended = true,
                Ok(n) => {
                    self.held.extend_from_slice(&piece[..n]);
                    allowed -= n;
                }
                Err(e) if is_pause(&e) => break,
                Err(_) => return None,
            }
        }
        let mut written = 0;
        while written < self.held.len().min(budget) {
            let end = self.held.len().min(budget);
            match to.write(&self.held[written..end]) {
                Ok(n) => written += n,
                Err(e) if is_pause(&e) => break,
                Err(_) => return None,
            }
        }
        self.held.drain(..written);
        if self.has_ended && self.held.is_empty() {
            // The other side may have closed already; then there is nobody to tell.
            let _ = to.shutdown(Shutdown::Write);
        }
        Some(written as u64)
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

const FLOW_LIMIT: usize = 256 * 1024;
const TURNS_PER_SECOND: u32 = 50;
