//! MQTT over WebSocket (§6): what frames may hold, and which protocol is named.

use std::io::{Read, Write};

use harness::Stream;

use crate::client::PATIENCE;
use crate::wire::{Publish, kind, length};
use crate::{Check, Room, check};

pub const CHECKS: &[Check] = &[
    check!(the_subprotocol_is_mqtt, V311 "6.0.0-4", V5 "6.0.0-4"),
    check!(packets_come_in_binary_frames, V311 "6.0.0-1", V5 "6.0.0-1"),
    check!(a_text_frame_ends_the_connection, V311 "6.0.0-1", V5 "6.0.0-1"),
    check!(a_frame_may_hold_a_part_of_a_packet, V311 "6.0.0-2", V5 "6.0.0-2"),
    check!(a_frame_may_hold_several_packets, V311 "6.0.0-2", V5 "6.0.0-2"),
    check!(a_ping_frame_is_answered, V311 "6.0", V5 "6.0"),
    check!(a_close_frame_ends_the_connection_and_publishes_the_will, V311 "3.1.2-8", V5 "3.1.2.5"),
    check!(messages_cross_between_websocket_and_tcp, V311 "4.2.0-1", V5 "4.2-1"),
];

const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// A WebSocket on which MQTT is spoken by hand.
struct WebSocket {
    stream: Stream,
    /// Bytes of MQTT that came and were not yet read.
    held: Vec<u8>,
    /// The answer to the upgrade.
    head: String,
}

impl WebSocket {
    fn open(room: &Room) -> Self {
        let mut stream = room.broker.connect().expect("the broker listens");
        stream.socket().set_read_timeout(Some(PATIENCE)).expect("a timeout above zero");
        let head = stream.upgrade(room.broker.address()).expect("an answer to the upgrade");
        assert!(head.starts_with("HTTP/1.1 101"), "{head}");
        Self { stream, held: Vec::new(), head }
    }

    /// One that is connected.
    fn connected(room: &Room) -> Self {
        let mut socket = Self::open(room);
        socket.send(BINARY, &room.hello("ws").bytes());
        let connack = socket.packet();
        assert_eq!((connack[0], connack[3]), (kind::CONNACK << 4, 0));
        socket
    }

    /// Sends one frame, masked with zeros.
    fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match u8::try_from(payload.len()) {
            Ok(short) if short < 0x7e => frame.push(0x80 | short),
            _ => {
                frame.push(0xfe);
                frame.extend_from_slice(&(payload.len() as u16).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        let _ = self.stream.write_all(&frame);
    }

    /// The next frame: its opcode and payload; `None` at the end of the connection.
    fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.exact(&mut head)?;
        let mut size = usize::from(head[1]);
        assert!(size < 128, "a server does not mask");
        if size == 0x7e {
            let mut long = [0; 2];
            self.exact(&mut long)?;
            size = usize::from(u16::from_be_bytes(long));
        }
        let mut payload = vec![0; size];
        self.exact(&mut payload)?;
        Some((head[0] & 0x0f, payload))
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Option<()> {
        match self.stream.read_exact(buffer) {
            Ok(()) => Some(()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("nothing came"),
            Err(_) => None,
        }
    }

    /// The next MQTT packet, out of binary frames.
    fn packet(&mut self) -> Vec<u8> {
        loop {
            if let Some((size, took)) = length(self.held.get(1..).unwrap_or(&[]))
                && self.held.len() > size + took
            {
                let rest = self.held.split_off(1 + took + size);
                return std::mem::replace(&mut self.held, rest);
            }
            let (opcode, payload) = self.frame().expect("the broker closed the connection");
            assert!(opcode == BINARY || opcode == 0, "a frame with opcode {opcode}");
            self.held.extend(payload);
        }
    }

    /// Reads until the connection ends; a DISCONNECT and a close frame may come before.
    fn expect_closed(&mut self) {
        while let Some((opcode, payload)) = self.frame() {
            let is_goodbye = opcode == BINARY && payload[0] >> 4 == kind::DISCONNECT;
            assert!(is_goodbye || opcode == CLOSE, "opcode {opcode}: {payload:02x?}");
        }
    }
}

fn the_subprotocol_is_mqtt(room: &Room) {
    let head = WebSocket::open(room).head.to_ascii_lowercase();
    assert!(head.contains("\r\nsec-websocket-protocol: mqtt\r\n"), "{head}");
}

fn packets_come_in_binary_frames(room: &Room) {
    let mut socket = WebSocket::connected(room);
    socket.send(BINARY, &[kind::PINGREQ << 4, 0]);
    assert_eq!(socket.frame(), Some((BINARY, vec![kind::PINGRESP << 4, 0])));
}

fn a_text_frame_ends_the_connection(room: &Room) {
    let mut socket = WebSocket::connected(room);
    socket.send(TEXT, &[kind::PINGREQ << 4, 0]);
    socket.expect_closed();
}

fn a_frame_may_hold_a_part_of_a_packet(room: &Room) {
    let mut socket = WebSocket::open(room);
    for byte in room.hello("ws").bytes() {
        socket.send(BINARY, &[byte]);
    }
    assert_eq!(socket.packet()[0], kind::CONNACK << 4);
    let publish = Publish::new(room.topic("x"), "y").qos(1).id(5).bytes(room.version);
    let (front, back) = publish.split_at(3);
    socket.send(BINARY, front);
    socket.send(BINARY, back);
    assert_eq!(socket.packet()[..1], [kind::PUBACK << 4]);
}

fn a_frame_may_hold_several_packets(room: &Room) {
    let mut socket = WebSocket::open(room);
    let mut bytes = room.hello("ws").bytes();
    for id in 1..=3 {
        bytes.extend(Publish::new(room.topic("x"), "y").qos(1).id(id).bytes(room.version));
    }
    bytes.extend([kind::PINGREQ << 4]);
    socket.send(BINARY, &bytes);
    assert_eq!(socket.packet()[0], kind::CONNACK << 4);
    for id in 1..=3 {
        assert_eq!(socket.packet()[2..4], [0, id]);
    }
    socket.send(BINARY, &[0]);
    assert_eq!(socket.packet(), [kind::PINGRESP << 4, 0]);
}

fn a_ping_frame_is_answered(room: &Room) {
    let mut socket = WebSocket::connected(room);
    socket.send(PING, b"hello");
    assert_eq!(socket.frame(), Some((PONG, b"hello".to_vec())));
}

fn a_close_frame_ends_the_connection_and_publishes_the_will(room: &Room) {
    let mut watcher = room.client("w");
    watcher.subscribe(room.topic("will"), 1);
    let mut socket = WebSocket::open(room);
    let will = Publish::new(room.topic("will"), "bye").qos(1);
    socket.send(BINARY, &room.hello("ws").will(will).bytes());
    socket.packet();
    socket.send(CLOSE, &[]);
    socket.expect_closed();
    assert_eq!(watcher.message().text(), "bye", "that was no DISCONNECT");
}

fn messages_cross_between_websocket_and_tcp(room: &Room) {
    let mut client = room.hello("a").open(room.plain);
    client.subscribe(room.topic("up"), 1);
    let mut socket = WebSocket::connected(room);
    let filter = room.topic("down");
    socket.send(BINARY, &crate::client::subscribe_bytes(room.version, 1, &[(filter.as_bytes(), 0)], &[]));
    assert_eq!(socket.packet()[0], kind::SUBACK << 4);
    client.publish(Publish::new(&filter, "x".repeat(5_000)));
    let down = socket.packet();
    assert!(down.ends_with(&[b'x'; 5_000]) && down[0] == kind::PUBLISH << 4);
    socket.send(BINARY, &Publish::new(room.topic("up"), "y".repeat(5_000)).qos(1).id(1).bytes(room.version));
    assert_eq!(client.message().payload, [b'y'; 5_000]);
}
