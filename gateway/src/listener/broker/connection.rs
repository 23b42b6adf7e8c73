//! One connection of the broker: moves bytes between a stream and the engine.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use mqtt::ConnectionId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::{Core, Stream};

/// How each connection's task is woken and told to end, by slot.
#[derive(Default)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    /// The connection whose task is running: it looks for itself, and is not woken for its own output.
    running: Option<ConnectionId>,
}

#[derive(Default)]
struct Slot {
    waker: Option<Waker>,
    is_closing: bool,
}

/// The task of one connection: a future that ends when the connection has.
///
/// A future written by hand, because reading, writing and being woken by another connection's message are one state:
/// what several packets put into the output leaves in one call.
pub(super) struct Driver {
    core: Rc<Core>,
    id: ConnectionId,
    stream: Box<dyn Stream>,
    /// What is being written, and how much of it has been.
    writing: Vec<u8>,
    written: usize,
    /// Whether something was written and not flushed.
    is_dirty: bool,
    /// Runs once the engine has closed the connection: whoever does not take the last bytes in time is cut off.
    linger: Option<Pin<Box<Sleep>>>,
    /// Whether everything is written and the peer has been told so.
    is_shut: bool,
}

impl Slots {
    pub(super) fn open(&mut self, id: ConnectionId) {
        if self.slots.len() <= id.slot() {
            self.slots.resize_with(id.slot() + 1, Slot::default);
        }
        self.slots[id.slot()] = Slot::default();
    }

    pub(super) fn forget(&mut self, id: ConnectionId) {
        self.slots[id.slot()] = Slot::default();
    }

    pub(super) fn wake(&self, id: ConnectionId) {
        if self.running != Some(id)
            && let Some(Slot { waker: Some(waker), .. }) = self.slots.get(id.slot())
        {
            waker.wake_by_ref();
        }
    }

    pub(super) fn close(&mut self, id: ConnectionId) {
        if let Some(slot) = self.slots.get_mut(id.slot()) {
            slot.is_closing = true;
        }
        self.wake(id);
    }

    fn is_closing(&self, id: ConnectionId) -> bool {
        self.slots[id.slot()].is_closing
    }

    fn begin(&mut self, id: ConnectionId, waker: &Waker) {
        self.running = Some(id);
        let held = &mut self.slots[id.slot()].waker;
        if !held.as_ref().is_some_and(|held| held.will_wake(waker)) {
            *held = Some(waker.clone());
        }
    }
}

impl Driver {
    pub(super) fn new(core: Rc<Core>, id: ConnectionId, stream: Box<dyn Stream>) -> Self {
        Self {
            core,
            id,
            stream,
            writing: Vec::new(),
            written: 0,
            is_dirty: false,
            linger: None,
            is_shut: false,
        }
    }

    /// Moves bytes until there is nothing to move. Ready when the connection is over.
    fn run(&mut self, context: &mut Context<'_>) -> Poll<()> {
        for _ in 0..TURNS {
            let is_closing = self.core.slots.borrow().is_closing(self.id);
            let written = self.write(context);
            if let Poll::Ready(Err(_)) = written {
                return Poll::Ready(());
            }
            if is_closing {
                return self.finish(context, written.is_ready());
            }
            // A peer that does not take it yet is read nevertheless, until too much waits for it: it may be writing
            // to us and read only when it is done.
            if !self.core.broker.borrow().wants_input(self.id) {
                return Poll::Pending;
            }
            match self.read(context) {
                Poll::Ready(true) => {}
                Poll::Ready(false) => return Poll::Ready(()),
                Poll::Pending => return Poll::Pending,
            }
        }
        // The others get their turn first.
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes all that the engine has for this connection, then flushes.
    fn write(&mut self, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        loop {
            while self.written < self.writing.len() {
                let rest = &self.writing[self.written..];
                match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                    0 => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                    count => self.written += count,
                }
                self.is_dirty = true;
            }
            self.writing.clear();
            self.written = 0;
            self.core.drive(|broker, now| broker.transmit(now, self.id, &mut self.writing));
            if self.writing.is_empty() {
                break;
            }
        }
        // An idle connection holds no memory for what it might write.
        self.writing = Vec::new();
        if self.is_dirty {
            ready!(Pin::new(&mut self.stream).poll_flush(context))?;
            self.is_dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    /// The engine has closed the connection: shuts the stream down once everything is written, then waits for the
    /// peer to do the same, both within a time limit.
    fn finish(&mut self, context: &mut Context<'_>, is_written: bool) -> Poll<()> {
        // An error while closing changes nothing.
        if is_written && !self.is_shut && Pin::new(&mut self.stream).poll_shutdown(context).is_ready() {
            self.is_shut = true;
            self.linger = Some(Box::pin(sleep(FAREWELL)));
        }
        if self.is_shut && self.discard(context).is_ready() {
            return Poll::Ready(());
        }
        self.linger.get_or_insert_with(|| Box::pin(sleep(LINGER))).as_mut().poll(context)
    }

    /// Reads what still comes and forgets it. A socket that is closed with unread bytes in it is reset, and a peer that
    /// was still sending would lose what was written last: the reason why.
    fn discard(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let core = self.core.clone();
        let mut scratch = core.scratch.borrow_mut();
        for _ in 0..TURNS {
            let mut buffer = ReadBuf::new(&mut scratch);
            let result = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
            if result.is_err() || buffer.filled().is_empty() {
                return Poll::Ready(());
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// Reads once and gives it to the engine. `false` when there will be nothing more.
    fn read(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let core = self.core.clone();
        let mut scratch = core.scratch.borrow_mut();
        let mut buffer = ReadBuf::new(&mut scratch);
        let result = ready!(Pin::new(&mut self.stream).poll_read(context, &mut buffer));
        let bytes = buffer.filled();
        if result.is_err() || bytes.is_empty() {
            return Poll::Ready(false);
        }
        core.drive(|broker, now| broker.handle_input(now, self.id, bytes));
        Poll::Ready(true)
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        this.core.slots.borrow_mut().begin(this.id, context.waker());
        let result = this.run(context);
        this.core.slots.borrow_mut().running = None;
        result
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.core.gone(self.id);
    }
}

/// How long a closed connection may take for its last bytes.
const LINGER: Duration = Duration::from_secs(2);

/// How long it is then waited for the peer's own end.
const FAREWELL: Duration = Duration::from_millis(500);

/// Reads in a row before the other connections get their turn.
const TURNS: usize = 4;
