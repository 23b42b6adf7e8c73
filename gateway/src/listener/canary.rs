//! The canary: an MQTT client of our own that comes in through the listener as every client does, publishes a number
//! every few seconds and has to hear it. While it does, accepting, reading, routing, delivering and writing all work;
//! while it does not, the watchdog is not fed, and systemd starts the gateway anew.
//!
//! It keeps its connection, so that a crowd at the door does not silence it. Its topic begins with `$`, so that nobody
//! who subscribes `#` sees it (MQTT 5.0 §4.7.2), and only the canary may publish there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail};
use log::{debug, warn};
use mqtt::access::{Access, ConnectRequest, Principal, Verdict};
use mqtt::client::{Client, Event, Options};
use mqtt::{Filter, Message, Qos, ReasonCode, Topic};
use ring::rand::{SecureRandom as _, SystemRandom};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::quantity::Secret;

/// The name under which the canary is known to the broker.
pub const USER: &str = "$canary";

/// Who the canary is: made anew with each start, and known to nobody else. Cheap to clone.
#[derive(Clone)]
pub struct Canary(Arc<Shared>);

struct Shared {
    password: Secret,
    topic: Topic,
    /// Between one number heard and the next one published, and how long an answer may take.
    pause: Duration,
    /// When it heard itself last; its start, before it did.
    heard: watch::Sender<Instant>,
}

/// Lets the canary in, where there is one, and leaves everybody else to other rules.
pub struct WithCanary<A> {
    canary: Option<Canary>,
    others: A,
}

impl Canary {
    /// One that is well as long as it has heard itself within `limit`: there is time for three numbers.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(limit: Duration) -> Result<Self> {
        let mut password = [0; 32];
        SystemRandom::new().fill(&mut password).map_err(|_| anyhow!("no random bytes"))?;
        let (password, topic) = (Secret::new(password.to_vec()), Topic::new(USER).expect("a topic"));
        Ok(Self(Arc::new(Shared {
            password,
            topic,
            pause: limit / 3,
            heard: watch::Sender::new(Instant::now()),
        })))
    }

    /// Whether it has heard itself lately.
    pub fn is_well(&self) -> bool {
        self.0.heard.borrow().elapsed() <= self.0.pause * 3
    }

    fn is_password(&self, candidate: &[u8]) -> bool {
        self.0.password.is(candidate)
    }

    /// Publishes and listens at `listener` until `stop`; whatever goes wrong, it tries again.
    pub async fn run(self, listener: SocketAddr, stop: CancellationToken) {
        let address = reachable(listener);
        let mut is_silent = false;
        loop {
            let sung = tokio::select! {
                sung = self.sing(address) => sung,
                () = stop.cancelled() => return,
            };
            if let Err(error) = sung {
                // Once for each time that it falls silent.
                if is_silent && self.is_well() {
                    is_silent = false;
                }
                if is_silent {
                    debug!("the broker does not answer itself at {address}: {error}");
                } else {
                    warn!("the broker does not answer itself at {address}: {error}");
                }
                is_silent = true;
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// One connection, until it fails.
    async fn sing(&self, address: SocketAddr) -> Result<()> {
        let begun = Instant::now();
        let pause = self.0.pause;
        let mut due = begun + pause;
        let mut stream = timeout_at(due.into(), TcpStream::connect(address)).await??;
        let options = Options {
            user: Some(USER.into()),
            password: Some(self.0.password.expose().to_vec()),
            keep_alive: Duration::from_secs(60),
            ..Options::default()
        };
        let mut client = Client::new(begun, options)?;
        client.connect(begun);
        let mut number = 0_u64;
        // Whether an answer is due, rather than the next number.
        let mut is_waiting = true;
        let mut piece = [0; 512];
        let mut out = Vec::new();
        loop {
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Connected { .. } => {
                        client.subscribe(&[(Filter::from(&self.0.topic), Qos::AtLeastOnce)])?;
                    }
                    Event::Subscribed { codes, .. } => {
                        if codes.iter().any(|code| code.is_error()) {
                            bail!("its subscription was refused");
                        }
                        self.publish(&mut client, number)?;
                    }
                    Event::Message { message, .. } if message.payload[..] == number.to_be_bytes() => {
                        self.0.heard.send_replace(Instant::now());
                        (is_waiting, due) = (false, Instant::now() + pause);
                    }
                    Event::Failed { reason, .. } => bail!("its message was refused: {reason}"),
                    Event::Closed { reason } => bail!("it was disconnected: {reason}"),
                    _ => {}
                }
            }
            client.transmit(Instant::now(), &mut out);
            if !out.is_empty() {
                timeout_at(due.into(), stream.write_all(&out)).await??;
                out.clear();
            }
            tokio::select! {
                read = stream.read(&mut piece) => match read? {
                    0 => bail!("it was disconnected"),
                    count => client.handle_input(Instant::now(), &piece[..count]),
                },
                () = sleep_until(due.into()) => {
                    if is_waiting {
                        bail!("no answer within {} s", pause.as_secs_f64());
                    }
                    number += 1;
                    (is_waiting, due) = (true, Instant::now() + pause);
                    self.publish(&mut client, number)?;
                }
            }
        }
    }

    fn publish(&self, client: &mut Client, number: u64) -> Result<()> {
        let payload = number.to_be_bytes().to_vec();
        let message = Message::new(self.0.topic.clone(), payload).with_qos(Qos::AtLeastOnce);
        Ok(client.publish(number, &message)?)
    }
}

/// Where a listener on every address is reached from here.
fn reachable(listener: SocketAddr) -> SocketAddr {
    let address = match listener.ip() {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    };
    SocketAddr::new(address, listener.port())
}

impl<A> WithCanary<A> {
    /// The canary's rights before those of `others`.
    pub fn before(canary: Option<Canary>, others: A) -> Self {
        Self { canary, others }
    }
}

impl<A: Access> Access for WithCanary<A> {
    fn connect(&self, request: &ConnectRequest<'_>) -> Verdict {
        if let (Some(USER), Some(canary)) = (request.user, &self.canary) {
            let is_right = request.password.is_some_and(|password| canary.is_password(password));
            return if is_right { Verdict::Accept(Some(USER.into())) } else { REFUSED };
        }
        match self.others.connect(request) {
            // Nobody else is called that, whoever says so.
            Verdict::Accept(Some(user)) if &*user == USER => REFUSED,
            verdict => verdict,
        }
    }

    fn may_publish(&self, who: &Principal, topic: &Topic, retain: bool) -> bool {
        if topic.as_str() == USER { is_canary(who) } else { self.others.may_publish(who, topic, retain) }
    }

    fn may_subscribe(&self, who: &Principal, filter: &Filter) -> bool {
        is_canary(who) || self.others.may_subscribe(who, filter)
    }

    fn may_receive(&self, who: &Principal, topic: &Topic) -> bool {
        is_canary(who) || self.others.may_receive(who, topic)
    }
}

fn is_canary(who: &Principal) -> bool {
    who.user.as_deref() == Some(USER)
}

const REFUSED: Verdict = Verdict::Refuse(ReasonCode::BAD_CREDENTIALS);
/// Before it tries again.
const RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::TcpListener;

    use mqtt::access::{Peer, Transport};
    use mqtt::{Limits, Version};

    use super::*;
    use crate::listener::broker::{self, BrokerConfig};
    use crate::users::Users;
    use crate::users::acl::Rule;

    #[tokio::test]
    async fn it_hears_itself_through_the_listener_whatever_the_rules_allow_others() {
        let users = Users::default();
        let rule = Rule { users: vec!["*".into()], publish: vec!["a".into()], subscribe: vec!["b".into()] };
        users.load(&BTreeMap::new(), &[rule]).unwrap();
        let canary = Canary::new(Duration::from_secs(15)).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let config = BrokerConfig {
            limits: Limits::default(),
            listeners: vec![listener],
            forwarded: Vec::new(),
            access: Box::new(WithCanary::before(Some(canary.clone()), users)),
            judge: None,
            seed: 1,
            shelves: None,
        };
        let broker = broker::start(config, stop.clone()).unwrap();
        let mut heard = canary.0.heard.subscribe();
        let task = tokio::spawn(canary.clone().run(address, stop.clone()));
        heard.changed().await.unwrap();
        assert!(canary.is_well());
        stop.cancel();
        task.await.unwrap();
        broker.finished.await.unwrap();
    }

    #[tokio::test]
    async fn a_listener_that_accepts_and_says_nothing_leaves_it_unheard() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let canary = Canary::new(Duration::from_millis(300)).unwrap();
        let heard = canary.0.heard.subscribe();
        let error = canary.sing(listener.local_addr().unwrap()).await.unwrap_err();
        assert!(!heard.has_changed().unwrap(), "{error}");
        // From its start it had time for three.
        while canary.is_well() {
            canary.sing(listener.local_addr().unwrap()).await.unwrap_err();
        }
    }

    #[test]
    fn nobody_else_is_the_canary_or_publishes_in_its_place() {
        let canary = Canary::new(Duration::from_millis(300)).unwrap();
        let rules = WithCanary::before(Some(canary.clone()), Users::default());
        let verdict = |user: &str, password: &[u8], known_as: Option<&str>| {
            let mut peer = Peer::new(Some("127.0.0.1:1".parse().unwrap()), Transport::WebSocket);
            peer.user = known_as.map(Into::into);
            rules.connect(&ConnectRequest {
                peer: &peer,
                version: Version::V5,
                client_id: "c",
                user: Some(user),
                password: Some(password),
            })
        };
        assert_eq!(verdict(USER, canary.0.password.expose(), None), Verdict::Accept(Some(USER.into())));
        assert_eq!(verdict(USER, &[0; 32], None), REFUSED);
        assert_eq!(verdict("x", b"x", Some(USER)), REFUSED);
        assert_eq!(verdict("x", b"x", None), Verdict::Accept(None));
        let who = |user: Option<&str>| Principal { user: user.map(Into::into), client_id: "c".into() };
        assert!(rules.may_publish(&who(Some(USER)), &canary.0.topic, false));
        assert!(!rules.may_publish(&who(None), &canary.0.topic, false));
    }
}
