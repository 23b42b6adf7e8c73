//! MQTT 3.1.1 and 5.0 to a broker elsewhere, over TCP, TLS or WebSocket: every parcel one PUBLISH.
//!
//! What `delivery` promises of the hop from this gateway to the broker:
//!
//! - `at-most-once`, QoS 0: nothing is sent twice. The cursor is on disk before a parcel is handed out; what is under way
//!   when the link or the gateway fails is lost.
//! - `at-least-once`, QoS 1: nothing is lost. What had no PUBACK when the link or the gateway failed is sent again, with
//!   the same id, at most a window a lane. Each connection begins with a clean session: the spool's cursor says what to
//!   send again, a broker's memory of us is not needed.
//! - `exactly-once`, QoS 2: neither, over any number of cuts and over `kill -9` of the gateway at any moment, as long as
//!   the broker keeps the session.
//!
//! For the last, [`Flights`] says which parcels are under way and how far each is, and is on disk together with the
//! cursors before the broker can act on it: a parcel before its first PUBLISH, its PUBREC before PUBREL. The packet id
//! follows from lane and place, the body is rebuilt from the log, so a new process goes on where the old one ended: what
//! was sent is sent again under its packet id with DUP, what was received is released, and only then comes what is new.
//! Two processes on one state directory would undo that; the lock on it keeps the second one out.
//!
//! If the broker loses the session (its own failure, an expired session, somebody with our client id), nothing is lost,
//! and what is certainly not delivered, or certainly is, is told apart from what may be:
//!
//! - PUBCOMP had come: delivered. It is not sent again.
//! - PUBREC had not come: the broker has not been told to deliver. A broker that hands on when it is released, as
//!   mosquitto does, has not; the parcel is sent anew, once. A broker that hands on at PUBLISH (the other way that MQTT 5.0
//!   §4.3.3 leaves open) may have, and then its subscribers get it twice.
//! - PUBREC had come and PUBCOMP had not: the doubt that the protocol leaves. The parcel is sent anew with the same id,
//!   and counted in the uplink's status as `doubtful`. Not sending it would lose it at a broker of the first kind.
//!
//! Whether the session of a connection is the one we know is not taken on trust: see [`session`].

mod commands;
mod flights;
mod presets;
mod sas;
mod session;
mod settings;
mod thingsboard;
mod transport;
mod websocket;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use log::warn;
use mqtt::client::{Client, Event, Options};
use mqtt::{Qos, Version};

use self::commands::Asked;
use self::flights::{FIRST_OF_LANES, Flights, Phase};
use self::presets::Dialect;
use self::session::{Answer, Inquiry};
use self::settings::Settings;
use self::transport::{CONNECT, Turn, Wire};
use super::forwarder::Lane;
use super::{Context, Link, Setup, Uplink, UplinkType};
use crate::config::document::settings;
use crate::payload::parcel::{Parcel, ParcelKey};

/// `type = "mqtt"`
pub static UPLINK: UplinkType = UplinkType {
    name: "mqtt",
    parse: |table| settings::<Settings>(table).map(|set| Arc::new(set) as Arc<dyn Setup>),
};

/// One uplink over all its connections.
struct Mqtt {
    settings: Settings,
    dialect: Dialect,
    name: String,
    window: usize,
    takes_commands: bool,
    /// At QoS 2, what is under way; read from disk at the first connection.
    flights: Option<Flights>,
    /// Whether `flights` says more than the disk.
    is_dirty: bool,
    /// Whether a CONNECT went out whose answer nobody saw: it may have made a session.
    is_unanswered: bool,
    /// Whether it was said that the broker allows no mark.
    is_unmarkable: bool,
    /// Commands being carried out, whatever becomes of the connection meanwhile.
    under_way: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// Connections so far.
    connections: u64,
}

/// Why a connection ended without an error.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The uplink is to stop.
    Stopped,
    /// Another connection is to follow at once.
    Again,
}

impl Uplink for Mqtt {
    fn carry<'a>(&'a mut self, link: &'a mut Link) -> BoxFuture<'a, anyhow::Result<()>> {
        Box::pin(async move {
            while self.connect(link).await? == End::Again {
                link.disconnected().await;
            }
            Ok(())
        })
    }
}

impl Mqtt {
    fn new(settings: Settings, context: Context) -> Self {
        Self {
            dialect: settings.dialect(&context),
            settings,
            window: context.common.window,
            takes_commands: context.common.commands,
            name: context.name,
            flights: None,
            is_dirty: false,
            is_unanswered: true,
            is_unmarkable: false,
            under_way: FuturesUnordered::new(),
            connections: 0,
        }
    }

    /// One connection, from its beginning to its end.
    async fn connect(&mut self, link: &mut Link) -> anyhow::Result<End> {
        let is_exact = self.dialect.qos == Qos::ExactlyOnce;
        let has_session = is_exact && Flights::decode(link.state()).is_some();
        if !is_exact && !link.state().is_empty() {
            // Left by a time when it was exactly-once.
            link.store_state(Vec::new()).await?;
        }
        let mut again = VecDeque::new();
        let mut unfinished = Vec::new();
        if is_exact {
            (again, unfinished) = self.take_up(link).await?;
        }
        let credentials = self.settings.credentials(&self.dialect.client_id)?;
        let renew_at = credentials.renew_in.map(|after| Instant::now() + after);
        let is_v5 = self.dialect.version == Version::V5;
        let options = Options {
            version: self.dialect.version,
            client_id: self.dialect.client_id.clone(),
            // A session that our store knows nothing of is not ours, whatever its packet ids stand for.
            clean_start: !is_exact || (is_v5 && !has_session),
            session_expiry: if is_exact { SESSION } else { Duration::ZERO },
            keep_alive: self.settings.keep_alive(),
            user: credentials.user,
            password: credentials.password,
            will: self.dialect.state("offline"),
            window: u16::try_from(self.client_window()).unwrap_or(u16::MAX),
            acknowledges_by_itself: false,
            releases_by_itself: false,
            own_packet_ids: if is_exact { 1..=FIRST_OF_LANES - 1 } else { 1..=u16::MAX },
            ..Options::default()
        };
        if is_exact && !is_v5 && !has_session {
            self.clear_session(&options).await?;
        }
        let stream = self.settings.route().dial().await?;
        let mut client = Client::new(Instant::now(), options)?;
        client.import(&unfinished, &[]);
        let mut connection = Connection {
            wire: Wire::new(stream),
            client,
            link,
            lines: Default::default(),
            again,
            planned: VecDeque::new(),
            received: Vec::new(),
            keys: HashMap::new(),
            inquiry: None,
            is_open: false,
            renew_at,
            next_answer: ANSWER_ID,
        };
        connection.carry(self).await
    }

    /// Messages under way to the broker. MQTT 5.0 brokers say how many they take; a 3.1.1 broker cannot, and mosquitto
    /// cuts a client off that has more than its `max_inflight_messages`, 20 by default, unfinished at QoS 2.
    fn client_window(&self) -> usize {
        match (self.dialect.qos, self.dialect.version) {
            (Qos::ExactlyOnce, Version::V5) => self.window + 1,
            (Qos::ExactlyOnce, _) => self.window.min(19) + 1,
            _ => self.window,
        }
    }

    /// Begins where the last connection, or the last process, ended: the parcels to be published again, and what the
    /// engine has to know.
    async fn take_up(
        &mut self,
        link: &mut Link,
    ) -> anyhow::Result<(VecDeque<Parcel>, Vec<mqtt::client::Unfinished>)> {
        let flights = match &mut self.flights {
            Some(flights) => flights,
            slot => {
                let flights = Flights::decode(link.state()).unwrap_or_else(|| {
                    if !link.state().is_empty() {
                        warn!(uplink:% = self.name; "what was under way cannot be read: it is sent again");
                    }
                    Flights::default()
                });
                slot.insert(flights)
            }
        };
        // What the engine is told of includes what the log has no use for any more: the broker waits for its end.
        let unfinished = flights.import();
        let mut again = VecDeque::new();
        let mut done = Vec::new();
        let all: Vec<(ParcelKey, Phase)> = flights.all().collect();
        for (key, phase) in all {
            let parcel = link.rebuild(key).await?;
            match parcel {
                Some(parcel) if link.resumed(key, parcel.entries) => match phase {
                    Phase::Sent => again.push_back(parcel),
                    Phase::Received => {}
                    Phase::Done => done.push(key),
                },
                // Confirmed already, given up, or gone from the disk.
                _ => {
                    flights.drop(key);
                    self.is_dirty = true;
                }
            }
        }
        for key in done {
            link.confirmed(key).await;
        }
        self.store(link).await?;
        Ok((again, unfinished))
    }

    /// Puts the flights on disk, if that is news there.
    async fn store(&mut self, link: &mut Link) -> anyhow::Result<()> {
        if let (true, Some(flights)) = (self.is_dirty, &self.flights) {
            link.store_state(flights.encode()).await?;
            self.is_dirty = false;
        }
        Ok(())
    }

    /// Ends the session that a 3.1.1 broker may have under our client id: packet ids in it stand for nothing of ours.
    async fn clear_session(&mut self, options: &Options) -> anyhow::Result<()> {
        let options = Options { clean_start: true, will: None, ..options.clone() };
        let mut wire = Wire::new(self.settings.route().dial().await?);
        let mut client = Client::new(Instant::now(), options)?;
        client.connect(Instant::now());
        let talk = async {
            loop {
                match client.poll_event() {
                    Some(Event::Connected { .. }) => {
                        client.disconnect();
                        return wire.flush(&mut client).await;
                    }
                    Some(Event::Closed { reason }) => bail!("{reason}"),
                    Some(_) => {}
                    None => {
                        wire.take_output(&mut client);
                        if let Turn::Read(bytes) = wire.turn().await? {
                            client.handle_input(Instant::now(), bytes);
                        }
                    }
                }
            }
        };
        tokio::time::timeout(CONNECT, talk).await.map_err(|_| anyhow!("no answer"))?
    }
}

/// A connection and what passes over it.
struct Connection<'a> {
    wire: Wire,
    client: Client,
    link: &'a mut Link,
    /// Parcels that nothing is said of yet, by lane. The forwarder's window bounds them.
    lines: [VecDeque<Parcel>; 3],
    /// Parcels to be published again before anything new.
    again: VecDeque<Parcel>,
    /// Parcels of `flights`, to be published once those are on disk.
    planned: VecDeque<Parcel>,
    /// Ids whose PUBREC is to be on disk before they are released.
    received: Vec<u64>,
    /// At QoS 1, the parcels behind the engine's ids.
    keys: HashMap<u64, ParcelKey>,
    inquiry: Option<(Inquiry, Instant)>,
    /// Whether parcels may go.
    is_open: bool,
    renew_at: Option<Instant>,
    next_answer: u64,
}

/// A command's outcome, and what is owed for it.
struct Answered {
    /// To be acknowledged on the connection with that number: another one knows nothing of it.
    token: Option<(u64, mqtt::client::AckToken)>,
    message: Option<mqtt::Message>,
}

impl Connection<'_> {
    async fn carry(&mut self, mqtt: &mut Mqtt) -> anyhow::Result<End> {
        let stop = self.link.stopping();
        let was_unanswered = std::mem::replace(&mut mqtt.is_unanswered, true);
        mqtt.connections += 1;
        self.client.connect(Instant::now());
        loop {
            while let Some(event) = self.client.poll_event() {
                if let Event::Connected { session_present, .. } = event {
                    mqtt.is_unanswered = false;
                    if let Some(end) = self.greet(mqtt, session_present, was_unanswered).await? {
                        return Ok(end);
                    }
                } else if let Some(end) = self.handle(mqtt, event).await? {
                    return Ok(end);
                }
            }
            if self.is_open {
                self.send(mqtt).await?;
            }
            self.wire.take_output(&mut self.client);
            let inquiry_ends = self.inquiry.as_ref().map(|(_, deadline)| *deadline);
            let deadline = [self.client.deadline(), inquiry_ends, self.renew_at].into_iter().flatten().min();
            let is_hungry = self.is_open && (mqtt.dialect.qos != Qos::AtMostOnce || self.wire.is_idle());
            tokio::select! {
                () = stop.cancelled() => break,
                // Cancel-safe: what was written or read is known, or nothing was.
                done = self.wire.turn() => if let Turn::Read(bytes) = done? {
                    self.client.handle_input(Instant::now(), bytes);
                },
                parcels = self.link.next(), if is_hungry => for parcel in parcels? {
                    self.lines[parcel.key.lane as usize].push_back(parcel);
                },
                Some(answered) = mqtt.under_way.next() => self.answer(mqtt, answered),
                () = until(deadline) => {
                    let now = Instant::now();
                    self.client.handle_timeout(now);
                    if self.renew_at.is_some_and(|at| at <= now) {
                        self.client.disconnect();
                        self.wire.flush(&mut self.client).await?;
                        return Ok(End::Again);
                    }
                    if self.inquiry.as_ref().is_some_and(|(_, at)| *at <= now) {
                        return self.conclude(mqtt, Answer::Lost).await.map(|end| end.unwrap_or(End::Again));
                    }
                }
            }
        }
        if mqtt.dialect.qos == Qos::AtMostOnce {
            // Behind the cursor already: now or never.
            self.send(mqtt).await?;
        }
        self.publish_state(mqtt, "offline");
        self.client.disconnect();
        // Said politely where the connection still stands.
        let _ = self.wire.flush(&mut self.client).await;
        Ok(End::Stopped)
    }

    /// The broker accepted us: whose session is it?
    async fn greet(
        &mut self,
        mqtt: &mut Mqtt,
        session_present: bool,
        was_unanswered: bool,
    ) -> anyhow::Result<Option<End>> {
        let Some(flights) = mqtt.flights.as_ref() else {
            self.open(mqtt)?;
            return Ok(None);
        };
        if !session_present {
            self.begin_session(mqtt).await?;
            return Ok(None);
        }
        let has_received = flights.all().any(|(_, phase)| phase == Phase::Received);
        let gateway = &mqtt.dialect.gateway;
        let inquiry = match (has_received, flights.mark) {
            // Unmarked, it cannot be told from one that an unanswered CONNECT of ours made: taken for that.
            (true, 0) if was_unanswered => return self.conclude(mqtt, Answer::Lost).await,
            (_, 0) if mqtt.is_unmarkable && !was_unanswered => {
                self.open(mqtt)?;
                return Ok(None);
            }
            // No place to ask in: the broker is believed.
            (true, _) if self.reserve() == 0 => {
                self.open(mqtt)?;
                return Ok(None);
            }
            (true, mark) if mark != 0 => Inquiry::ask(&mut self.client, gateway, flights, random())?,
            // Nothing depends on whose it was; from now on it is known.
            _ => Inquiry::mark(&mut self.client, gateway, flights, random())?,
        };
        self.inquiry = Some((inquiry, Instant::now() + INQUIRY));
        Ok(None)
    }

    /// The broker has no session of ours: everything under way is sent again, in a new and marked one.
    async fn begin_session(&mut self, mqtt: &mut Mqtt) -> anyhow::Result<()> {
        self.again_from_the_beginning(mqtt).await?;
        self.again.clear();
        let Some(flights) = &mut mqtt.flights else { return Ok(()) };
        let keys: Vec<ParcelKey> =
            flights.all().filter(|(_, phase)| *phase == Phase::Sent).map(|(key, _)| key).collect();
        for key in keys {
            if let Some(parcel) = self.link.rebuild(key).await? {
                self.again.push_back(parcel);
            } else {
                // Gone from the disk meanwhile, which is an entry of its own.
                flights.done(Flights::id(key));
                self.link.confirmed(key).await;
            }
        }
        let inquiry = Inquiry::mark(&mut self.client, &mqtt.dialect.gateway, flights, random())?;
        self.inquiry = Some((inquiry, Instant::now() + INQUIRY));
        Ok(())
    }

    /// Notes that the session is gone.
    async fn again_from_the_beginning(&mut self, mqtt: &mut Mqtt) -> anyhow::Result<()> {
        let Some(flights) = &mut mqtt.flights else { return Ok(()) };
        let (again, doubtful) = flights.session_lost();
        if again > 0 {
            warn!(uplink:% = mqtt.name; "the broker lost our session: {again} messages are sent again, {doubtful} of them may come twice");
        }
        self.link.note_doubtful(flights.doubts);
        mqtt.is_dirty = true;
        mqtt.store(self.link).await
    }

    /// Lets parcels go.
    fn open(&mut self, mqtt: &mut Mqtt) -> anyhow::Result<()> {
        self.is_open = true;
        self.link.connected(&mqtt.settings.target());
        if let Some(flights) = &mqtt.flights {
            self.link.note_doubtful(flights.doubts);
        }
        // What the log has no use for any more is not among the flights, and ends here too.
        for entry in self.client.unfinished().into_iter().filter(|entry| entry.is_received) {
            self.client.release(entry.id);
        }
        self.publish_state(mqtt, "online");
        if mqtt.takes_commands {
            let filter = mqtt.dialect.command_filter()?;
            self.client.subscribe(&[(filter, Qos::AtLeastOnce)]).map_err(|error| anyhow!(error))?;
        }
        Ok(())
    }

    async fn handle(&mut self, mqtt: &mut Mqtt, event: Event) -> anyhow::Result<Option<End>> {
        if let Some((inquiry, _)) = &mut self.inquiry
            && inquiry.is_about(&event)
        {
            let answer = inquiry.handle(&mut self.client, &event)?;
            if let Event::Message { token: Some(token), .. } = event {
                self.client.acknowledge(token);
            }
            return self.conclude(mqtt, answer).await;
        }
        match event {
            Event::Received { id } => {
                if mqtt.flights.as_mut().is_some_and(|flights| flights.received(id)) {
                    mqtt.is_dirty = true;
                    self.received.push(id);
                } else {
                    self.client.release(id);
                }
            }
            Event::Confirmed { id } => {
                let key = match &mut mqtt.flights {
                    Some(flights) => flights.done(id),
                    None => self.keys.remove(&id),
                };
                if let Some(key) = key {
                    mqtt.is_dirty = true;
                    self.link.confirmed(key).await;
                }
            }
            Event::Failed { id, reason } if id != STATE_ID && id < ANSWER_ID => {
                bail!("the broker refused a message: {reason:?}")
            }
            Event::Subscribed { codes, .. } if codes.iter().any(|code| code.is_error()) => {
                warn!(uplink:% = mqtt.name; "the broker refused a subscription: {codes:?}");
            }
            Event::Message { message, token } => self.take_command(mqtt, &message, token),
            Event::Closed { reason } => {
                let _ = self.wire.flush(&mut self.client).await;
                bail!("{reason}");
            }
            _ => {}
        }
        Ok(None)
    }

    /// Goes on with what is known of the session.
    async fn conclude(&mut self, mqtt: &mut Mqtt, answer: Answer) -> anyhow::Result<Option<End>> {
        match answer {
            Answer::Pending => {}
            Answer::Ours => {
                self.inquiry = None;
                self.open(mqtt)?;
            }
            Answer::Lost => {
                // The engine takes this session for the old one: another connection, with an engine that does not.
                self.again_from_the_beginning(mqtt).await?;
                self.client.disconnect();
                let _ = self.wire.flush(&mut self.client).await;
                return Ok(Some(End::Again));
            }
            Answer::Marked(mark) => {
                self.inquiry = None;
                if mark == 0 && !mqtt.is_unmarkable {
                    mqtt.is_unmarkable = true;
                    warn!(uplink:% = mqtt.name; "the broker allows no subscription below {}/$session: after a restart of the gateway what is under way may come twice", mqtt.dialect.gateway);
                }
                if let Some(flights) = &mut mqtt.flights {
                    flights.mark = mark;
                }
                mqtt.is_dirty = true;
                mqtt.store(self.link).await?;
                self.open(mqtt)?;
            }
        }
        Ok(None)
    }

    /// Says to the broker what may be said now.
    async fn send(&mut self, mqtt: &mut Mqtt) -> anyhow::Result<()> {
        if mqtt.dialect.qos == Qos::ExactlyOnce {
            return self.send_exactly(mqtt).await;
        }
        let is_free = mqtt.dialect.qos == Qos::AtMostOnce;
        for lane in Lane::ALL {
            while is_free || self.client.capacity() > 0 {
                let Some(parcel) = self.lines[lane as usize].pop_front() else { break };
                let id = Flights::id(parcel.key);
                let message = mqtt.dialect.publish(&parcel)?;
                self.client.publish(id, &message).map_err(|error| anyhow!(error))?;
                if !is_free {
                    self.keys.insert(id, parcel.key);
                }
            }
        }
        Ok(())
    }

    async fn send_exactly(&mut self, mqtt: &mut Mqtt) -> anyhow::Result<()> {
        self.publish_planned(mqtt, true)?;
        let mut room = self.client.capacity().saturating_sub(self.planned.len() + self.reserve());
        if let (true, Some(flights)) = (self.again.is_empty(), &mut mqtt.flights) {
            for lane in Lane::ALL {
                let line = &mut self.lines[lane as usize];
                // The one that has the packet id goes first; its lane waits for it, and no other does.
                while room > 0 && line.front().is_some_and(|parcel| flights.has_room(parcel.key)) {
                    let Some(parcel) = line.pop_front() else { break };
                    flights.plan(parcel.key);
                    mqtt.is_dirty = true;
                    self.planned.push_back(parcel);
                    room -= 1;
                }
            }
        }
        if self.planned.is_empty() && self.received.is_empty() {
            return Ok(());
        }
        mqtt.store(self.link).await?;
        for id in self.received.drain(..) {
            self.client.release(id);
        }
        self.publish_planned(mqtt, false)
    }

    /// How many places of the window are not for parcels: with all of them taken by what is received and not released,
    /// the question whose session it is would find none.
    fn reserve(&self) -> usize {
        usize::from(self.client.window() > 1)
    }

    /// Publishes what is on disk as being under way.
    fn publish_planned(&mut self, mqtt: &Mqtt, is_again: bool) -> anyhow::Result<()> {
        let reserve = self.reserve();
        let queue = if is_again { &mut self.again } else { &mut self.planned };
        while self.client.capacity() > reserve
            && let Some(parcel) = queue.pop_front()
        {
            let message = mqtt.dialect.publish(&parcel)?;
            let (id, packet_id) = (Flights::id(parcel.key), Flights::packet_id(parcel.key));
            self.client.publish_as(id, packet_id, &message).map_err(|error| anyhow!(error))?;
        }
        Ok(())
    }

    /// The counterpart of our will. Not an entry: if it is lost with the connection, the next one says it again.
    fn publish_state(&mut self, mqtt: &Mqtt, state: &'static str) {
        if let Some(message) = mqtt.dialect.state(state) {
            let _ = self.client.publish(STATE_ID, &message);
        }
    }

    /// Hands a command to the desk. The broker may forget it when its outcome is known.
    fn take_command(
        &mut self,
        mqtt: &mut Mqtt,
        message: &mqtt::Message,
        token: Option<mqtt::client::AckToken>,
    ) {
        let asked = mqtt.dialect.command(message);
        let done = |client: &mut Client| token.into_iter().for_each(|token| client.acknowledge(token));
        // A retained command would be carried out again at every connection.
        let Some(mut asked) = asked.filter(|_| mqtt.takes_commands && !message.retain) else {
            return done(&mut self.client);
        };
        if mqtt.under_way.len() >= COMMANDS {
            warn!(uplink:% = mqtt.name; "too many commands at a time: one is not carried out");
            return done(&mut self.client);
        }
        let wait = message.properties.as_ref().and_then(|properties| properties.expiry);
        if let Some(ends) = wait.and_then(|wait| jiff::Timestamp::now().checked_add(wait).ok()) {
            asked.expires = Some(asked.expires.map_or(ends, |expires| expires.min(ends)));
        }
        let commands = self.link.commands();
        let token = token.map(|token| (mqtt.connections, token));
        mqtt.under_way.push(Box::pin(async move {
            let Asked { channel, value, id, expires, reply } = asked;
            let expires_ns = expires.and_then(|expires| i64::try_from(expires.as_nanosecond()).ok());
            let outcome = commands.carry_out(&channel, &value, id, expires_ns).await;
            Answered { token, message: reply.and_then(|reply| reply.message(outcome)) }
        }));
    }

    fn answer(&mut self, mqtt: &Mqtt, answered: Answered) {
        if let Some(message) = answered.message {
            // The outcome is an entry too: this one is for who waits, and not kept for later.
            self.next_answer += 1;
            let _ = self.client.publish(self.next_answer, &message);
        }
        let ours = answered.token.filter(|(connection, _)| *connection == mqtt.connections);
        if let Some((_, token)) = ours {
            self.client.acknowledge(token);
        }
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    RandomState::new().hash_one(0)
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// No entry has this place: the log begins at 1.
const STATE_ID: u64 = 0;
/// Nor one of these.
const ANSWER_ID: u64 = 1 << 63;
/// How long the broker is asked to keep the session (5.0): longer than most outages.
const SESSION: Duration = Duration::from_secs(30 * 86_400);
/// How long the broker may take to show whose session it is.
const INQUIRY: Duration = Duration::from_secs(10);
/// Commands under way at a time.
const COMMANDS: usize = 64;
