//! Whether the broker's session is the one that our flights belong to. Pure: no disk, no wire, no clock.
//!
//! CONNACK says that *a* session was there, not which. If the broker lost the session, and the answer to the CONNECT
//! that made a new one never reached us (a cut, or the end of our process), or somebody else made one under our client
//! id, the next CONNACK speaks of that new one; who then took his messages for received would lose them. So each session
//! gets a mark: a subscription `…/$session/<mark>/+` that only this session has. Where something depends on it, the mark
//! is asked for, by what every broker has to keep to, the order of one publisher's messages on one topic
//! [MQTT-4.6.0-5, -6]:
//!
//! 1. publish `1` to `…/$session/<mark>/<nonce>` and wait for PUBACK;
//! 2. subscribe to `…/$session/+/<nonce>`;
//! 3. publish `2` there.
//!
//! `2` comes in any case. If `1` comes first, the mark is there, and the session is ours. If `2` comes alone, it is not.
//! A broker that does not let us subscribe there leaves it open, and what is open counts as lost: rather twice than
//! never.

use anyhow::anyhow;
use mqtt::client::{Client, Event};
use mqtt::{Filter, Message, Qos, ReasonCode, Topic};

use super::flights::Flights;

/// Finds out whose session it is, and marks a new one. Feed it the events behind [`Event::Connected`] until it answers.
pub struct Inquiry {
    /// `tidegate/<gateway>/$session`.
    base: String,
    step: Step,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not known yet.
    Pending,
    /// The session holds what the flights say.
    Ours,
    /// The session is gone; the new one is not marked yet: begin with [`Inquiry::mark`].
    Lost,
    /// The session has this mark from now on; 0 if the broker allows none.
    Marked(u64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Our mark's subscription is under way.
    Marking { packet_id: u16, mark: u64 },
    /// `1` is published.
    Asking { topic: Topic, fence: Filter },
    /// The second subscription is under way.
    Fencing { packet_id: u16, topic: Topic, fence: Filter, is_ours: bool },
    /// `2` is published.
    Listening { fence: Filter },
}

impl Inquiry {
    /// Gives the present session a new mark; that of `flights`, if it has one, is taken off it.
    pub fn mark(client: &mut Client, gateway: &str, flights: &Flights, mark: u64) -> anyhow::Result<Self> {
        let base = base(gateway);
        let mark = mark.max(1);
        if flights.mark != 0 {
            client.unsubscribe(&[filter_of(&base, flights.mark)?]).map_err(|error| anyhow!(error))?;
        }
        let packet_id = subscribe(client, &filter_of(&base, mark)?)?;
        Ok(Self { base, step: Step::Marking { packet_id, mark } })
    }

    /// Asks whether the present session has the mark of `flights`; `nonce` is new each time.
    pub fn ask(client: &mut Client, gateway: &str, flights: &Flights, nonce: u64) -> anyhow::Result<Self> {
        let base = base(gateway);
        let topic = Topic::new(format!("{base}/{:016x}/{nonce:016x}", flights.mark))?;
        let fence = Filter::new(format!("{base}/+/{nonce:016x}"))?;
        publish(client, FIRST_ID, &topic, "1")?;
        Ok(Self { base, step: Step::Asking { topic, fence } })
    }

    /// Whether an event is about this and nobody else's business.
    pub fn is_about(&self, event: &Event) -> bool {
        match event {
            Event::Message { message, .. } => message.topic.as_str().starts_with(&self.base),
            Event::Confirmed { id } => [FIRST_ID, SECOND_ID].contains(id),
            Event::Subscribed { packet_id, .. } => match &self.step {
                Step::Marking { packet_id: ours, .. } | Step::Fencing { packet_id: ours, .. } => {
                    packet_id == ours
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Takes an event that [`Inquiry::is_about`] it.
    pub fn handle(&mut self, client: &mut Client, event: &Event) -> anyhow::Result<Answer> {
        match (&mut self.step, event) {
            (Step::Marking { mark, .. }, Event::Subscribed { codes, .. }) => {
                return Ok(Answer::Marked(if is_granted(codes) { *mark } else { 0 }));
            }
            (Step::Asking { topic, fence }, Event::Confirmed { id: FIRST_ID }) => {
                let packet_id = subscribe(client, fence)?;
                let (topic, fence) = (topic.clone(), fence.clone());
                self.step = Step::Fencing { packet_id, topic, fence, is_ours: false };
            }
            // The mark may answer before the question is confirmed.
            (Step::Asking { .. }, Event::Message { message, .. }) if &message.payload[..] == b"1" => {
                return Ok(Answer::Ours);
            }
            (Step::Listening { fence }, Event::Message { message, .. }) => {
                client.unsubscribe(std::slice::from_ref(fence)).map_err(|error| anyhow!(error))?;
                return Ok(if &message.payload[..] == b"1" { Answer::Ours } else { Answer::Lost });
            }
            (Step::Fencing { is_ours, .. }, Event::Message { message, .. }) => {
                *is_ours |= &message.payload[..] == b"1";
            }
            (Step::Fencing { topic, fence, is_ours, .. }, Event::Subscribed { codes, .. }) => {
                let fence = fence.clone();
                if *is_ours || !is_granted(codes) {
                    return Ok(if *is_ours { Answer::Ours } else { Answer::Lost });
                }
                publish(client, SECOND_ID, topic, "2")?;
                self.step = Step::Listening { fence };
            }
            _ => {}
        }
        Ok(Answer::Pending)
    }
}

fn base(gateway: &str) -> String {
    format!("{}/{gateway}/$session", crate::payload::ROOT)
}

fn filter_of(base: &str, mark: u64) -> anyhow::Result<Filter> {
    Ok(Filter::new(format!("{base}/{mark:016x}/+"))?)
}

fn subscribe(client: &mut Client, filter: &Filter) -> anyhow::Result<u16> {
    client.subscribe(&[(filter.clone(), Qos::AtLeastOnce)]).map_err(|error| anyhow!(error))
}

fn publish(client: &mut Client, id: u64, topic: &Topic, payload: &'static str) -> anyhow::Result<()> {
    let message = Message::new(topic.clone(), payload).with_qos(Qos::AtLeastOnce);
    client.publish(id, &message).map_err(|error| anyhow!(error))
}

fn is_granted(codes: &[ReasonCode]) -> bool {
    codes.first().is_some_and(|code| !code.is_error())
}

/// The engine's ids of the two questions: no place in the log is that far.
const FIRST_ID: u64 = u64::MAX - 1;
const SECOND_ID: u64 = u64::MAX;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use mqtt::client::Options;
    use mqtt::{Broker, Limits, Peer, Transport};

    use super::*;

    fn talk(broker: &mut Broker, client: &mut Client, mut handle: impl FnMut(&mut Client, &Event)) {
        let now = Instant::now();
        let id = broker.accept(now, Peer::new(None, Transport::Memory)).unwrap();
        client.connect(now);
        loop {
            let (mut up, mut down) = (Vec::new(), Vec::new());
            client.transmit(now, &mut up);
            broker.handle_input(now, id, &up);
            while broker.poll_event().is_some() {}
            broker.transmit(now, id, &mut down);
            client.handle_input(now, &down);
            let mut is_quiet = up.is_empty() && down.is_empty();
            while let Some(event) = client.poll_event() {
                is_quiet = false;
                handle(client, &event);
            }
            if is_quiet {
                break;
            }
        }
        broker.handle_gone(now, id);
        while broker.poll_event().is_some() {}
        client.handle_gone();
    }

    fn client(version: mqtt::Version, clean_start: bool) -> Client {
        let options = Options {
            version,
            client_id: "c".into(),
            clean_start,
            session_expiry: Duration::from_secs(900),
            ..Options::default()
        };
        Client::new(Instant::now(), options).unwrap()
    }

    /// Connects, runs an inquiry, and says what came of it.
    fn inquire(broker: &mut Broker, client: &mut Client, begin: impl Fn(&mut Client) -> Inquiry) -> Answer {
        let (mut inquiry, mut answer) = (None, Answer::Pending);
        talk(broker, client, |client, event| match event {
            Event::Connected { .. } => inquiry = Some(begin(client)),
            event => {
                let inquiry: &mut Inquiry = inquiry.as_mut().unwrap();
                if answer == Answer::Pending && inquiry.is_about(event) {
                    answer = inquiry.handle(client, event).unwrap();
                }
            }
        });
        answer
    }

    #[test]
    fn a_marked_session_is_known_again_and_one_made_in_between_is_not() {
        for version in [mqtt::Version::V311, mqtt::Version::V5] {
            let mut broker = Broker::new(Limits::default(), 1);
            let mut client = client(version, false);
            let mut flights = Flights::default();
            let marked = inquire(&mut broker, &mut client, |client| {
                Inquiry::mark(client, "barn", &flights, 77).unwrap()
            });
            assert_eq!(marked, Answer::Marked(77));
            flights.mark = 77;
            for nonce in 1..4 {
                let ask = |client: &mut Client| Inquiry::ask(client, "barn", &flights, nonce).unwrap();
                assert_eq!(inquire(&mut broker, &mut client, ask), Answer::Ours, "{version:?} {nonce}");
            }
            // Somebody else's hand, or the broker's own failure: the session goes, and an unanswered CONNECT makes one.
            talk(&mut broker, &mut self::client(version, true), |_, _| {});
            talk(&mut broker, &mut self::client(version, false), |_, _| {});
            for nonce in 5..8 {
                let ask = |client: &mut Client| Inquiry::ask(client, "barn", &flights, nonce).unwrap();
                assert_eq!(
                    inquire(&mut broker, &mut client, ask),
                    Answer::Lost,
                    "asking leaves no mark: {nonce}"
                );
            }
            let remark = |client: &mut Client| Inquiry::mark(client, "barn", &flights, 78).unwrap();
            assert_eq!(inquire(&mut broker, &mut client, remark), Answer::Marked(78));
            let old = |client: &mut Client| Inquiry::ask(client, "barn", &flights, 9).unwrap();
            assert_eq!(inquire(&mut broker, &mut client, old), Answer::Lost, "the old mark is off");
        }
    }

    #[test]
    fn a_broker_that_allows_no_mark_leaves_it_open_and_open_is_lost() {
        let mut client = client(mqtt::Version::V5, false);
        let now = Instant::now();
        client.connect(now);
        client.transmit(now, &mut Vec::new());
        client.handle_input(now, &[0x20, 3, 1, 0, 0]);
        client.poll_event();
        let mut flights = Flights::default();
        flights.mark = 1;
        let mut inquiry = Inquiry::ask(&mut client, "barn", &flights, 2).unwrap();
        let confirmed = Event::Confirmed { id: FIRST_ID };
        assert_eq!(inquiry.handle(&mut client, &confirmed).unwrap(), Answer::Pending);
        let Step::Fencing { packet_id, .. } = inquiry.step else { panic!("{:?}", inquiry.step) };
        let refused = Event::Subscribed { packet_id, codes: vec![ReasonCode(0x87)] };
        assert!(inquiry.is_about(&refused));
        assert_eq!(inquiry.handle(&mut client, &refused).unwrap(), Answer::Lost);
    }
}
