//! The listener on real sockets, with the client engine of the uplink at the other end.

use std::net::SocketAddr;
use std::time::Duration;

use mqtt::client::{Client, Event, Options};
use mqtt::{Allow, Qos, Topic, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

struct Server {
    address: SocketAddr,
    handle: BrokerHandle,
    ingress: mpsc::Receiver<Ingress>,
    stop: CancellationToken,
    finished: oneshot::Receiver<()>,
}

impl Server {
    fn new(limits: Limits, forwarded: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let forwarded = forwarded.iter().map(|filter| Filter::new(filter).unwrap()).collect();
        let config = BrokerConfig {
            limits,
            listeners: vec![listener],
            forwarded,
            access: Box::new(Allow),
            seed: 1,
            judge: None,
            shelves: None,
        };
        let Started { handle, ingress, finished } = start(config, stop.clone()).unwrap();
        Self { address, handle, ingress, stop, finished }
    }

    async fn client(&self, options: Options) -> Link<TcpStream> {
        Link::new(TcpStream::connect(self.address).await.unwrap(), options).await
    }
}

/// A client engine on a stream.
struct Link<S> {
    stream: S,
    client: Client,
}

impl<S: Stream> Link<S> {
    async fn new(stream: S, options: Options) -> Self {
        let mut client = Client::new(Instant::now(), options).unwrap();
        client.connect(Instant::now());
        let mut link = Self { stream, client };
        assert!(matches!(link.next().await, Event::Connected { .. }));
        link
    }

    /// The next event; fails the test if none comes.
    async fn next(&mut self) -> Event {
        let next = async {
            loop {
                if let Some(event) = self.client.poll_event() {
                    return event;
                }
                let mut bytes = Vec::new();
                self.client.transmit(Instant::now(), &mut bytes);
                self.stream.write_all(&bytes).await.unwrap();
                bytes.clear();
                bytes.reserve(4_096);
                self.stream.read_buf(&mut bytes).await.unwrap();
                assert!(!bytes.is_empty(), "the broker closed the connection");
                self.client.handle_input(Instant::now(), &bytes);
            }
        };
        timeout(PATIENCE, next).await.expect("an event in time")
    }

    async fn flush(&mut self) {
        let mut bytes = Vec::new();
        self.client.transmit(Instant::now(), &mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn subscribe(&mut self, filter: &str) {
        self.client.subscribe(&[(Filter::new(filter).unwrap(), Qos::ExactlyOnce)]).unwrap();
        assert!(matches!(self.next().await, Event::Subscribed { .. }));
    }

    async fn message(&mut self) -> Message {
        loop {
            match self.next().await {
                Event::Message { message, .. } => return message,
                Event::Confirmed { .. } => {}
                event => panic!("{event:?}"),
            }
        }
    }
}

fn named(client_id: &str, version: Version) -> Options {
    Options { client_id: client_id.into(), version, ..Options::default() }
}

fn message(topic: &str, payload: &str) -> Message {
    Message::new(Topic::new(topic).unwrap(), payload.to_owned()).with_qos(Qos::AtLeastOnce)
}

#[tokio::test]
async fn a_message_goes_from_client_to_client_and_to_the_gateway_and_from_it() {
    let server = Server::new(Limits::default(), &[]);
    let mut local = server.handle.subscribe(Filter::new("#").unwrap(), Taking::Unseen).await;
    let mut reader = server.client(named("reader", Version::V311)).await;
    reader.subscribe("#").await;
    let mut writer = server.client(named("writer", Version::V5)).await;
    writer.client.publish(1, &message("a/b", "from a client")).unwrap();
    assert_eq!(writer.next().await, Event::Confirmed { id: 1 });
    assert_eq!(reader.message().await.payload, "from a client");
    let delivered = timeout(PATIENCE, local.recv()).await.unwrap().unwrap();
    assert_eq!(
        (delivered.origin, &delivered.message.payload[..]),
        (Origin::Client("writer".into()), &b"from a client"[..])
    );
    assert!(server.handle.publish(message("c", "from the gateway")));
    assert_eq!(reader.message().await.payload, "from the gateway");
    assert_eq!(timeout(PATIENCE, local.recv()).await.unwrap().unwrap().origin, Origin::Gateway);
    let status = server.handle.status().await.unwrap();
    assert_eq!((status.connections, status.clients.len(), status.subscriptions), (2, 2, 2));
}

#[tokio::test]
async fn an_acknowledgement_waits_for_its_receipt_and_a_dropped_receipt_refuses() {
    let mut server = Server::new(Limits::default(), &["up/#"]);
    let mut writer = server.client(named("writer", Version::V5)).await;
    writer.client.publish(1, &message("up/1", "kept")).unwrap();
    writer.client.publish(2, &message("up/2", "lost")).unwrap();
    writer.client.publish(3, &message("up/3", "full")).unwrap();
    writer.flush().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(timeout(PATIENCE, server.ingress.recv()).await.unwrap().unwrap());
    }
    waiting.pop().unwrap().receipt.refused(ReasonCode::QUOTA_EXCEEDED);
    drop(waiting.pop());
    waiting.pop().unwrap().receipt.stored();
    assert_eq!(writer.next().await, Event::Confirmed { id: 1 });
    assert_eq!(writer.next().await, Event::Failed { id: 2, reason: ReasonCode::IMPLEMENTATION_SPECIFIC });
    assert_eq!(writer.next().await, Event::Failed { id: 3, reason: ReasonCode::QUOTA_EXCEEDED });
}

#[tokio::test]
async fn idle_sockets_delay_nobody_and_are_closed_in_time() {
    // Long enough for all of them to be there at once on a busy machine.
    let limits = Limits { connect_timeout: Duration::from_secs(4), ..Limits::default() };
    let server = Server::new(limits, &[]);
    let mut idle = Vec::new();
    for turn in 0..200u8 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(&[0x10, 0x7f, 0, 4][..usize::from(turn % 5)]).await.unwrap();
        idle.push(stream);
    }
    server.client(named("good", Version::V5)).await;
    assert!(
        server.handle.status().await.unwrap().counters.connect_timeouts < 200,
        "served before they were gone"
    );
    for mut stream in idle {
        let closed = timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("closed in time");
        assert!(matches!(closed, Ok(0) | Err(_)));
    }
    assert_eq!(server.handle.status().await.unwrap().counters.connect_timeouts, 200);
}

#[tokio::test]
async fn a_client_that_never_reads_delays_nobody() {
    let server = Server::new(Limits::default(), &[]);
    let mut stuck = server.client(named("stuck", Version::V311)).await;
    stuck.subscribe("#").await;
    let mut reader = server.client(named("reader", Version::V311)).await;
    reader.subscribe("#").await;
    let mut writer = server.client(named("writer", Version::V311)).await;
    // Far more than the stuck client's socket buffers hold.
    let payload = "x".repeat(20_000);
    for id in 0..1_000 {
        writer.client.publish(id, &message("t", &payload)).unwrap();
        assert_eq!(writer.next().await, Event::Confirmed { id });
        assert_eq!(reader.message().await.payload.len(), payload.len());
    }
}

#[tokio::test]
async fn an_attached_stream_is_served_like_a_socket() {
    let server = Server::new(Limits::default(), &[]);
    let (ours, theirs) = tokio::io::duplex(50);
    server.handle.attach(theirs, Peer::new(None, Transport::Memory), Instant::now()).await;
    let mut link = Link::new(ours, named("memory", Version::V5)).await;
    link.subscribe("t").await;
    server.handle.publish(message("t", &"long".repeat(1_000)));
    assert_eq!(link.message().await.payload.len(), 4_000);
    assert_eq!(server.handle.status().await.unwrap().clients[0].transport, Some(Transport::Memory));
}

#[tokio::test]
async fn the_time_to_connect_counts_from_when_the_stream_was_accepted() {
    let server = Server::new(Limits::default(), &[]);
    let (mut ours, theirs) = tokio::io::duplex(50);
    let accepted = Instant::now().checked_sub(Limits::default().connect_timeout).unwrap();
    server.handle.attach(theirs, Peer::new(None, Transport::Tls), accepted).await;
    assert_eq!(timeout(Duration::from_secs(5), ours.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    assert_eq!(server.handle.status().await.unwrap().counters.connect_timeouts, 1);
}

#[tokio::test]
async fn a_stopping_broker_says_goodbye_and_ends() {
    let server = Server::new(Limits::default(), &[]);
    let mut new = server.client(named("new", Version::V5)).await;
    let mut old = server.client(named("old", Version::V311)).await;
    server.stop.cancel();
    assert_eq!(new.next().await, Event::Closed { reason: ReasonCode::SERVER_SHUTTING_DOWN });
    assert_eq!(timeout(PATIENCE, old.stream.read(&mut [0; 16])).await.unwrap().unwrap(), 0);
    timeout(PATIENCE, server.finished).await.expect("it ends").unwrap();
    assert!(server.handle.status().await.is_none());
    assert!(!server.handle.publish(message("t", "too late")));
}

#[tokio::test]
async fn a_subscription_of_the_gateway_begins_with_what_is_retained_and_ends_with_its_receiver() {
    let server = Server::new(Limits::default(), &[]);
    server.handle.publish(message("state", "kept").retained());
    // The publish and the subscription travel on different ways: wait until the first has arrived.
    while server.handle.status().await.unwrap().retained == 0 {}
    let mut local = server.handle.subscribe(Filter::new("state").unwrap(), Taking::Unseen).await;
    assert_eq!(timeout(PATIENCE, local.recv()).await.unwrap().unwrap().message.payload, "kept");
    drop(local);
    while server.handle.status().await.unwrap().subscriptions > 0 {
        server.handle.publish(message("state", "nobody is there"));
    }
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_forgotten() {
    let server = Server::new(Limits::default(), &[]);
    let link = server.client(named("brief", Version::V5)).await;
    drop(link);
    let gone = async {
        while server.handle.status().await.unwrap().connections > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("forgotten in time");
    assert!(server.handle.status().await.unwrap().clients.is_empty());
}

/// How long anything may take before a test fails: far longer than it does.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_peer_that_is_still_sending_reads_why_it_was_closed_and_then_the_end() {
    let server = Server::new(Limits { packet_bytes: 1_000, ..Limits::default() }, &[]);
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x02me").await.unwrap();
    // A PUBLISH of a megabyte: its length alone is enough to refuse it.
    stream.write_all(&[0x30, 0xc0, 0x84, 0x3d]).await.unwrap();
    stream.write_all(&vec![b'x'; 1_000_000]).await.expect("nobody cuts us off");
    let mut heard = Vec::new();
    let end = stream.read_to_end(&mut heard);
    tokio::time::timeout(Duration::from_secs(5), end).await.unwrap().expect("an end, not a reset");
    assert!(heard.ends_with(&[0xe0, 1, 0x95]), "{heard:02x?}");
    // Linux shows what came before a reset; the stacks of small devices throw it away with the connection.
    assert!(stream.take_error().unwrap().is_none(), "the connection was reset");
}
