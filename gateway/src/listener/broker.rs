//! The MQTT listener: the [`mqtt::Broker`] engine on real connections.
//!
//! One thread owns everything: the engine, every connection and one timer, on a runtime of its own. A message goes
//! from the publisher's socket to the subscribers' sockets without a lock and without changing threads; what many
//! messages put into one connection's output leaves in one write, and on a quiet link each leaves at once.
//!
//! Other threads reach it through a [`BrokerHandle`]. TCP listeners come already bound, so that the caller can say
//! what is wrong with an address; TLS and WebSocket connections come ready for MQTT through
//! [`BrokerHandle::attach`], so that no handshake ever delays an accept.

mod connection;
mod shelves;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use log::{debug, warn};
use mqtt::{
    Access, Broker, ClientStatus, ConnectionId, Counters, Event, Filter, IngressToken, Limits, LocalId,
    Message, Origin, Peer, Qos, ReasonCode, Transport, Verdict,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use connection::{Driver, Slots};
pub use shelves::Shelves;

/// What the broker is started with.
pub struct BrokerConfig {
    /// The engine's bounds.
    pub limits: Limits,
    /// Where plain TCP clients connect: bound and listening.
    pub listeners: Vec<TcpListener>,
    /// Clients' messages on these are stored before they are acknowledged.
    pub forwarded: Vec<Filter>,
    /// Who may do what.
    pub access: Box<dyn Access + Send>,
    /// Answers for `access` where that takes a while; without, whoever would have to wait is refused.
    pub judge: Option<Judge>,
    /// Makes assigned client ids hard to guess.
    pub seed: u64,
    /// Where sessions, retained messages and queues are kept; without, they end with the process.
    pub shelves: Option<Shelves>,
}

/// Says whether a user with a password may come in, on a thread where it may take its time.
pub type Judge = Box<dyn Fn(Option<String>, Option<Vec<u8>>) -> Verdict + Send + Sync>;

/// A started broker.
pub struct Started {
    /// The way to it, from any thread.
    pub handle: BrokerHandle,
    /// Clients' messages on forwarded topics.
    pub ingress: mpsc::Receiver<Ingress>,
    /// Resolves when the broker has stopped: asked to, or because its thread failed.
    pub finished: oneshot::Receiver<()>,
}

/// The way to the broker from any thread; cheap to clone.
#[derive(Clone)]
pub struct BrokerHandle {
    messages: mpsc::Sender<Message>,
    control: mpsc::Sender<Control>,
    dropped: Arc<AtomicU64>,
}

/// A message a client published on a forwarded topic.
#[derive(Debug)]
pub struct Ingress {
    /// The message.
    pub message: Arc<Message>,
    /// To be used once the message is safe on disk; until then its sender is not acknowledged.
    pub receipt: Receipt,
}

/// How a reader in the gateway takes messages.
pub use mqtt::Taking;

/// The acknowledgement that waits, if one does. Dropping it says that the message could not be taken.
#[derive(Debug)]
pub struct Receipt {
    token: Option<IngressToken>,
    answers: mpsc::UnboundedSender<Answer>,
}

/// A message for the gateway itself.
#[derive(Debug)]
pub struct Delivered {
    /// The message.
    pub message: Arc<Message>,
    /// Who published it; [`Origin::Gateway`] for our own and for what was retained before the subscription.
    pub origin: Origin,
    /// To be used once it has been dealt with, by a reader that is [`Taking::Answered`].
    pub receipt: Receipt,
}

/// What the broker is doing.
#[derive(Debug, Clone)]
pub struct Status {
    /// The engine's counters.
    pub counters: Counters,
    /// Every session.
    pub clients: Vec<ClientStatus>,
    /// Open connections.
    pub connections: usize,
    /// Subscriptions, the gateway's own among them.
    pub subscriptions: usize,
    /// Retained messages.
    pub retained: usize,
    /// Messages of the gateway dropped because the broker did not keep up.
    pub dropped_publishes: u64,
    /// Messages for the gateway dropped because their reader did not keep up.
    pub dropped_deliveries: u64,
    /// At-most-once messages on forwarded topics dropped because the intake did not keep up.
    pub dropped_ingress: u64,
}

/// Anything that carries MQTT's bytes.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

enum Control {
    Subscribe { filter: Filter, taking: Taking, messages: mpsc::Sender<Delivered> },
    Attach { stream: Box<dyn Stream>, peer: Peer, accepted: Instant },
    SetForwarded(Vec<Filter>),
    Status(oneshot::Sender<Status>),
}

/// A client that waits for a verdict.
struct Case {
    connection: ConnectionId,
    user: Option<String>,
    password: Option<Vec<u8>>,
}

type Answer = (IngressToken, Result<(), ReasonCode>);

/// What all tasks of the broker's thread share.
struct Core {
    broker: RefCell<Broker>,
    slots: RefCell<Slots>,
    locals: RefCell<HashMap<LocalId, mpsc::Sender<Delivered>>>,
    ingress: mpsc::Sender<Ingress>,
    answers: mpsc::UnboundedSender<Answer>,
    /// Where there is a judge.
    cases: Option<mpsc::Sender<Case>>,
    /// The places in `ingress` that at-most-once messages may not take.
    reserved: usize,
    /// What the timer waits for; a deadline before it wakes the timer.
    armed: Cell<Option<Instant>>,
    rearm: Notify,
    /// Read into by whichever connection is being read: a connection costs no buffer while it is idle.
    scratch: RefCell<Vec<u8>>,
    /// Told when the last connection has gone.
    emptied: Notify,
    /// Told when there are changes to be stored, and when somebody waits for that.
    changed: Notify,
    hurried: Notify,
    dropped_deliveries: Cell<u64>,
    dropped_ingress: Cell<u64>,
    /// Connections that have gone since memory was given back last.
    gone: Cell<usize>,
}

/// Starts the broker on a thread of its own; it ends when `stop` is cancelled.
pub fn start(config: BrokerConfig, stop: CancellationToken) -> io::Result<Started> {
    // Full: a publish of the live copy is dropped and counted, the next reading replaces it.
    let (messages, published) = mpsc::channel(PUBLISHES);
    // Full: the caller waits.
    let (control, commands) = mpsc::channel(CONTROLS);
    // Full: QoS 0 is dropped and counted before it takes the places of QoS 1 and 2, of which the engine hands out no
    // more than it has places here; further clients are not read until there is room.
    let reserved = config.limits.ingress;
    let (ingress_sender, ingress) = mpsc::channel(reserved * 2);
    // Never longer than the messages handed out as ingress.
    let (answers, answered) = mpsc::unbounded_channel();
    let (done, finished) = oneshot::channel();
    let dropped = Arc::new(AtomicU64::new(0));
    let handle = BrokerHandle { messages, control, dropped: dropped.clone() };

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listeners = {
        let _guard = runtime.enter();
        let adopt = |listener: TcpListener| {
            listener.set_nonblocking(true)?;
            tokio::net::TcpListener::from_std(listener)
        };
        config.listeners.into_iter().map(adopt).collect::<io::Result<Vec<_>>>()?
    };
    thread::Builder::new().name("mqtt-broker".into()).spawn(move || {
        let mut broker = Broker::new(config.limits, config.seed);
        broker.set_access(config.access);
        broker.set_forwarded(&config.forwarded);
        // Full: whoever comes then is told that the server is busy.
        let (cases_in, cases) = mpsc::channel(CASES);
        let shelves = config.shelves.map(|shelves| shelves.restore(&mut broker));
        let core = Rc::new(Core {
            broker: RefCell::new(broker),
            slots: RefCell::default(),
            locals: RefCell::default(),
            ingress: ingress_sender,
            answers,
            cases: config.judge.is_some().then_some(cases_in),
            reserved,
            armed: Cell::new(None),
            rearm: Notify::new(),
            scratch: RefCell::new(vec![0; READ_BYTES]),
            emptied: Notify::new(),
            changed: Notify::new(),
            hurried: Notify::new(),
            dropped_deliveries: Cell::new(0),
            dropped_ingress: Cell::new(0),
            gone: Cell::new(0),
        });
        LocalSet::new().block_on(&runtime, async {
            for listener in listeners {
                spawn_local(accept(core.clone(), listener));
            }
            spawn_local(keep_time(core.clone()));
            spawn_local(take_messages(core.clone(), published));
            spawn_local(take_answers(core.clone(), answered));
            spawn_local(take_commands(core.clone(), commands, dropped));
            if let Some(judge) = config.judge {
                spawn_local(judge_cases(core.clone(), cases, Arc::new(judge)));
            }
            let end = CancellationToken::new();
            let keeping = shelves.map(|shelves| spawn_local(shelves.run(core.clone(), end.clone())));
            stop.cancelled().await;
            core.drive(Broker::shut_down);
            // Whoever does not take the goodbye in this time does not get it.
            let _ = timeout(GOODBYE, core.until_empty()).await;
            end.cancel();
            if let Some(keeping) = keeping {
                let _ = timeout(GOODBYE, keeping).await;
            }
        });
        let _ = done.send(());
    })?;
    Ok(Started { handle, ingress, finished })
}

impl BrokerHandle {
    /// Publishes without waiting: `false` if the broker is so far behind that the message was dropped (and counted),
    /// or has stopped.
    pub fn publish(&self, message: Message) -> bool {
        let is_taken = self.messages.try_send(message).is_ok();
        if !is_taken {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        is_taken
    }

    /// Subscribes the gateway: what is retained comes first, then what is published. Of a reader that is
    /// [`DELIVERIES`] / 2 messages behind, QoS 0 is lost, and the newest of all when it is [`DELIVERIES`] behind; both are
    /// counted. One that answers for what it takes loses no QoS 1 and 2: no more of it is under way than there is room
    /// for, and who publishes more is not read. Dropping the receiver ends the subscription.
    pub async fn subscribe(&self, filter: Filter, taking: Taking) -> mpsc::Receiver<Delivered> {
        let (messages, receiver) = mpsc::channel(DELIVERIES);
        // A broker that has stopped drops the sender, and the receiver says so.
        let _ = self.control.send(Control::Subscribe { filter, taking, messages }).await;
        receiver
    }

    /// Hands over a connection on which CONNECT is expected next, in a time that began when it was `accepted`.
    pub async fn attach(&self, stream: impl Stream + 'static, peer: Peer, accepted: Instant) {
        let _ = self.control.send(Control::Attach { stream: Box::new(stream), peer, accepted }).await;
    }

    /// Waits until the broker has said goodbye to everybody.
    pub async fn stopped(&self) {
        self.control.closed().await;
    }

    /// Replaces the filters whose messages are stored before they are acknowledged.
    pub async fn set_forwarded(&self, filters: Vec<Filter>) {
        let _ = self.control.send(Control::SetForwarded(filters)).await;
    }

    /// What the broker is doing; `None` if it has stopped.
    pub async fn status(&self) -> Option<Status> {
        let (reply, answer) = oneshot::channel();
        self.control.send(Control::Status(reply)).await.ok()?;
        answer.await.ok()
    }
}

impl Receipt {
    /// The message is safe: its sender may forget it.
    pub fn stored(mut self) {
        self.answer(Ok(()));
    }

    /// The message could not be stored: its sender is told so, or left to try again.
    pub fn refused(mut self, reason: ReasonCode) {
        self.answer(Err(reason));
    }

    fn answer(&mut self, answer: Result<(), ReasonCode>) {
        if let Some(token) = self.token.take() {
            // The broker has stopped: then nobody waits.
            let _ = self.answers.send((token, answer));
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        self.answer(Err(ReasonCode::IMPLEMENTATION_SPECIFIC));
    }
}

impl Core {
    /// Lets the engine do something, then does what it asks for.
    fn drive<T>(&self, act: impl FnOnce(&mut Broker, Instant) -> T) -> T {
        let now = Instant::now();
        let mut broker = self.broker.borrow_mut();
        let result = act(&mut broker, now);
        while let Some(event) = broker.poll_event() {
            self.obey(&mut broker, now, event);
        }
        let deadline = broker.deadline();
        if deadline.is_some_and(|deadline| self.armed.get().is_none_or(|armed| deadline < armed)) {
            self.rearm.notify_one();
        }
        if let Some(waiting) = broker.waiting_changes() {
            self.changed.notify_one();
            if waiting.is_urgent {
                self.hurried.notify_one();
            }
        }
        result
    }

    fn obey(&self, broker: &mut Broker, now: Instant, event: Event) {
        match event {
            Event::Output(id) => self.slots.borrow().wake(id),
            Event::Close(id) => self.slots.borrow_mut().close(id),
            Event::Local { id, token, message, origin } => {
                let receipt = Receipt { token, answers: self.answers.clone() };
                self.deliver(broker, id, Delivered { message, origin, receipt });
            }
            Event::Ingress { token, message, .. } => {
                if token.is_none() && self.ingress.capacity() <= self.reserved {
                    self.dropped_ingress.set(self.dropped_ingress.get() + 1);
                    return;
                }
                let receipt = Receipt { token, answers: self.answers.clone() };
                // There is room, or nobody is there to take it: then the receipt says "not stored" as it is dropped.
                let _ = self.ingress.try_send(Ingress { message, receipt });
            }
            Event::Authenticate { connection, user, password, .. } => {
                let case = Case { connection, user, password };
                let is_taken = self.cases.as_ref().is_some_and(|cases| cases.try_send(case).is_ok());
                if !is_taken {
                    broker.decide(now, connection, Verdict::Refuse(ReasonCode::SERVER_BUSY));
                }
            }
        }
    }

    fn deliver(&self, broker: &mut Broker, id: LocalId, delivered: Delivered) {
        let mut locals = self.locals.borrow_mut();
        let Some(messages) = locals.get(&id) else { return };
        let is_crowded = messages.capacity() <= DELIVERIES / 2;
        if is_crowded && delivered.message.qos == Qos::AtMostOnce && !messages.is_closed() {
            self.dropped_deliveries.set(self.dropped_deliveries.get() + 1);
            return;
        }
        match messages.try_send(delivered) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.dropped_deliveries.set(self.dropped_deliveries.get() + 1);
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                locals.remove(&id);
                broker.unsubscribe_local(id);
            }
        }
    }

    fn open(self: &Rc<Self>, stream: Box<dyn Stream>, peer: Peer, accepted: Instant) {
        // Refused: the stream is dropped, and so closed; the engine has counted it.
        let Some(id) = self.drive(|broker, _| broker.accept(accepted, peer)) else { return };
        self.slots.borrow_mut().open(id);
        spawn_local(Driver::new(self.clone(), id, stream));
    }

    fn gone(&self, id: ConnectionId) {
        self.slots.borrow_mut().forget(id);
        self.drive(|broker, now| broker.handle_gone(now, id));
        let count = self.broker.borrow().connection_count();
        if count == 0 {
            self.emptied.notify_one();
        }
        let gone = self.gone.get() + 1;
        // After a crowd, not with every client that comes and goes.
        let is_much = gone >= CROWD && gone > count;
        self.gone.set(if is_much { 0 } else { gone });
        if is_much {
            give_memory_back();
        }
    }

    async fn until_empty(&self) {
        while self.broker.borrow().connection_count() > 0 {
            self.emptied.notified().await;
        }
    }

    fn status(&self, dropped_publishes: u64) -> Status {
        let broker = self.broker.borrow();
        Status {
            counters: broker.counters().clone(),
            clients: broker.clients(),
            connections: broker.connection_count(),
            subscriptions: broker.subscription_count(),
            retained: broker.retained_count(),
            dropped_publishes,
            dropped_deliveries: self.dropped_deliveries.get(),
            dropped_ingress: self.dropped_ingress.get(),
        }
    }
}

/// The allocator of glibc keeps what is free behind something that is not, until it is asked.
#[cfg_attr(target_env = "gnu", expect(unsafe_code, reason = "malloc_trim(3) has no wrapper"))]
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: may be called at any time by any thread.
    unsafe {
        libc::malloc_trim(0);
    }
}

async fn accept(core: Rc<Core>, listener: tokio::net::TcpListener) {
    let mut is_failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                is_failing = false;
                if let Err(error) = stream.set_nodelay(true) {
                    debug!(peer:% = address; "cannot switch off Nagle's algorithm: {error}");
                }
                core.open(Box::new(stream), Peer::new(Some(address), Transport::Tcp), Instant::now());
            }
            Err(error) => {
                // Out of file descriptors, most likely: those who are connected go on, the next one waits.
                if !is_failing {
                    warn!("cannot accept MQTT connections: {error}");
                }
                is_failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn keep_time(core: Rc<Core>) {
    loop {
        let deadline = core.broker.borrow().deadline();
        core.armed.set(deadline);
        let due = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => core.drive(Broker::handle_timeout),
            () = core.rearm.notified() => {}
        }
    }
}

async fn take_messages(core: Rc<Core>, mut published: mpsc::Receiver<Message>) {
    let mut batch = Vec::with_capacity(BATCH);
    while published.recv_many(&mut batch, BATCH).await > 0 {
        core.drive(|broker, now| {
            for message in batch.drain(..) {
                broker.publish(now, message);
            }
        });
    }
}

async fn take_answers(core: Rc<Core>, mut answered: mpsc::UnboundedReceiver<Answer>) {
    let mut batch = Vec::with_capacity(BATCH);
    while answered.recv_many(&mut batch, BATCH).await > 0 {
        core.drive(|broker, now| {
            for (token, stored) in batch.drain(..) {
                broker.acknowledge(now, token, stored);
            }
        });
    }
}

/// One case after the other: a hash costs memory and time.
async fn judge_cases(core: Rc<Core>, mut cases: mpsc::Receiver<Case>, judge: Arc<Judge>) {
    while let Some(Case { connection, user, password }) = cases.recv().await {
        let judge = judge.clone();
        let verdict = tokio::task::spawn_blocking(move || judge(user, password)).await;
        let verdict = verdict.unwrap_or(Verdict::Refuse(ReasonCode::UNSPECIFIED));
        core.drive(|broker, now| broker.decide(now, connection, verdict));
    }
}

async fn take_commands(core: Rc<Core>, mut commands: mpsc::Receiver<Control>, dropped: Arc<AtomicU64>) {
    while let Some(command) = commands.recv().await {
        match command {
            Control::Subscribe { filter, taking, messages } => core.drive(|broker, now| {
                // Known before the first event of the subscription is obeyed.
                let id = broker.subscribe_local(now, filter, taking);
                core.locals.borrow_mut().insert(id, messages);
            }),
            Control::Attach { stream, peer, accepted } => core.open(stream, peer, accepted),
            Control::SetForwarded(filters) => core.drive(|broker, _| broker.set_forwarded(&filters)),
            // Who asked and went away does not need the answer.
            Control::Status(reply) => drop(reply.send(core.status(dropped.load(Ordering::Relaxed)))),
        }
    }
}

/// Messages of the gateway that wait for the broker.
const PUBLISHES: usize = 16_384;

/// Commands that wait for the broker, connections handed over among them.
const CONTROLS: usize = 256;

/// Messages that wait for one reader in the gateway; half of them more than the engine has under way to readers that
/// answer.
pub const DELIVERIES: usize = 4_096;

/// Messages or answers taken at a time, before connections get their turn.
const BATCH: usize = 256;

/// Bytes read from a connection at a time: what one connection may do before the next gets its turn.
const READ_BYTES: usize = 32 << 10;

/// How long connections may take for the last bytes when the broker stops.
const GOODBYE: Duration = Duration::from_secs(2);

/// Clients that wait for a verdict.
const CASES: usize = 64;

/// So many connections have to go before memory is given back.
const CROWD: usize = 512;

/// How long accepting rests after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
