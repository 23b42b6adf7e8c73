//! Packets from the broker: what each of them does (MQTT 5.0 §3, seen from the client).

use std::time::Duration;

use mqtt_protocol_core::mqtt::packet::{Property, v5_0};

use super::outbox::Sent;
use super::{AckToken, Client, Event, Granted, Owed, Phase};
use crate::wire::{self, Ack, Frame, PublishView, Reader, Version, kind, write_ack};
use crate::{Qos, ReasonCode, Topic};

impl Client {
    pub(super) fn handle_packet(&mut self, frame: &Frame<'_>) -> Result<(), ReasonCode> {
        let version = self.options.version;
        if !self.is_connected() {
            return if frame.kind == kind::CONNACK {
                self.handle_connack(frame.body)
            } else {
                Err(ReasonCode::PROTOCOL_ERROR)
            };
        }
        match frame.kind {
            kind::PUBLISH => return self.handle_publish(frame),
            kind::PUBACK => {
                let ack = Ack::read(version, frame.body)?;
                self.finish(ack, |sent| sent.qos == Qos::AtLeastOnce);
            }
            kind::PUBREC => self.handle_pubrec(Ack::read(version, frame.body)?),
            kind::PUBCOMP => {
                let mut ack = Ack::read(version, frame.body)?;
                // "Unknown" says that the broker finished it before: delivered all the same.
                if ack.reason == ReasonCode::PACKET_ID_NOT_FOUND {
                    ack.reason = ReasonCode::SUCCESS;
                }
                self.finish(ack, |sent| sent.is_released);
            }
            kind::PUBREL => {
                let ack = Ack::read(version, frame.body)?;
                let is_known = self.incoming.remove(&ack.packet_id).is_some();
                let reason = if is_known { ReasonCode::SUCCESS } else { ReasonCode::PACKET_ID_NOT_FOUND };
                write_ack(&mut self.output, version, kind::PUBCOMP, ack.packet_id, reason);
            }
            kind::SUBACK | kind::UNSUBACK => {
                let mut reader = Reader(frame.body);
                let packet_id = reader.packet_id()?;
                if version == Version::V5 {
                    reader.properties()?;
                }
                if self.outbox.end_subscription(packet_id) {
                    let codes = reader.0.iter().map(|code| ReasonCode(*code)).collect();
                    self.events.push_back(Event::Subscribed { packet_id, codes });
                }
            }
            kind::PINGRESP => {}
            kind::DISCONNECT if version == Version::V5 => {
                let reason = frame.body.first().map_or(ReasonCode::SUCCESS, |code| ReasonCode(*code));
                self.close(reason);
            }
            _ => return Err(ReasonCode::PROTOCOL_ERROR),
        }
        Ok(())
    }

    fn handle_connack(&mut self, body: &[u8]) -> Result<(), ReasonCode> {
        let mut reader = Reader(body);
        let flags = reader.byte()?;
        let code = reader.byte()?;
        if flags > 1 {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        let is_v5 = self.options.version == Version::V5;
        let reason = if is_v5 { ReasonCode(code) } else { ReasonCode::from_v3_connack(code) };
        if reason != ReasonCode::SUCCESS {
            self.close(reason);
            return Ok(());
        }
        let mut granted = Granted {
            window: usize::from(self.options.window),
            packet_bytes: wire::MAX_PACKET,
            qos: Qos::ExactlyOnce,
            retain: true,
            keep_alive: self.options.keep_alive,
        };
        let mut assigned_client_id = None;
        if is_v5 {
            // The crate knows which properties belong into CONNACK and how often.
            let (connack, length) = v5_0::Connack::parse(body).map_err(wire::reason_of)?;
            if length != body.len() {
                return Err(ReasonCode::MALFORMED_PACKET);
            }
            for property in connack.props() {
                match property {
                    Property::ReceiveMaximum(value) => {
                        granted.window = granted.window.min(usize::from(value.val()));
                    }
                    Property::MaximumPacketSize(value) => granted.packet_bytes = value.val() as usize,
                    Property::MaximumQos(value) => {
                        granted.qos = Qos::new(value.val()).ok_or(ReasonCode::PROTOCOL_ERROR)?;
                    }
                    Property::RetainAvailable(value) => granted.retain = value.val() == 1,
                    Property::ServerKeepAlive(value) => {
                        granted.keep_alive = Duration::from_secs(u64::from(value.val()));
                    }
                    Property::AssignedClientIdentifier(value) => {
                        assigned_client_id = Some(value.val().to_owned());
                    }
                    _ => {}
                }
            }
        } else {
            reader.end()?;
        }
        let session_present = flags == 1;
        // A session that we don't know, because we asked for none, is a broker's mistake [MQTT-3.2.2-4].
        if session_present && self.options.clean_start {
            return Err(ReasonCode::PROTOCOL_ERROR);
        }
        self.granted = granted;
        self.phase = Phase::Connected;
        if session_present {
            self.release_received();
        } else {
            self.forget_session();
        }
        self.events.push_back(Event::Connected { session_present, assigned_client_id });
        Ok(())
    }

    /// After a reconnect: what the broker has received needs PUBREL again, in the order of the messages
    /// [MQTT-4.4.0-1]. What the caller has not released yet follows when it does.
    fn release_received(&mut self) {
        for (_, sent) in self.outbox.unfinished() {
            if sent.is_released {
                let version = self.options.version;
                write_ack(&mut self.output, version, kind::PUBREL, sent.packet_id, ReasonCode::SUCCESS);
            }
        }
    }

    fn handle_publish(&mut self, frame: &Frame<'_>) -> Result<(), ReasonCode> {
        let view = PublishView::read(self.options.version, frame.flags, frame.body)?;
        let (qos, packet_id) = (view.qos, view.packet_id);
        // We offer no topic aliases, so none may be used [MQTT-3.1.2-26, -27].
        if view.topic_alias.is_some() {
            return Err(ReasonCode::TOPIC_ALIAS_INVALID);
        }
        if qos != Qos::AtMostOnce && self.owed.len() >= usize::from(self.options.receive_maximum.max(1)) {
            return Err(ReasonCode::RECEIVE_MAXIMUM_EXCEEDED);
        }
        let known = if qos == Qos::ExactlyOnce { self.incoming.get(&packet_id).copied() } else { None };
        let is_repeated = known.is_some();
        let (token, is_ready) = known.unwrap_or((self.next_token, self.options.acknowledges_by_itself));
        self.next_token += 1;
        match qos {
            Qos::AtMostOnce => {}
            Qos::AtLeastOnce => self.owed.push_back(Owed { kind: kind::PUBACK, packet_id, token, is_ready }),
            Qos::ExactlyOnce => {
                self.incoming.insert(packet_id, (token, is_ready));
                self.owed.push_back(Owed { kind: kind::PUBREC, packet_id, token, is_ready });
            }
        }
        if !is_repeated {
            let topic = Topic::new(view.topic).map_err(|_| ReasonCode::TOPIC_INVALID)?;
            let is_owed = qos != Qos::AtMostOnce && !self.options.acknowledges_by_itself;
            let token = is_owed.then_some(AckToken(token));
            self.events.push_back(Event::Message { message: view.into_message(topic), token });
        }
        self.settle();
        Ok(())
    }

    fn handle_pubrec(&mut self, ack: Ack) {
        let Some((id, sent)) =
            self.outbox.under(ack.packet_id).filter(|(_, sent)| sent.qos == Qos::ExactlyOnce)
        else {
            let reason = ReasonCode::PACKET_ID_NOT_FOUND;
            write_ack(&mut self.output, self.options.version, kind::PUBREL, ack.packet_id, reason);
            return;
        };
        if ack.reason.is_error() {
            self.finish(ack, |sent| !sent.is_received);
        } else if sent.is_released || self.options.releases_by_itself {
            self.outbox.mark_received(id, true);
            let reason = ReasonCode::SUCCESS;
            write_ack(&mut self.output, self.options.version, kind::PUBREL, ack.packet_id, reason);
        } else if !sent.is_received {
            self.outbox.mark_received(id, false);
            self.events.push_back(Event::Received { id });
        }
    }

    /// A final answer to one of our messages.
    fn finish(&mut self, ack: Ack, fits: impl Fn(&Sent) -> bool) {
        let Some((id, sent)) = self.outbox.under(ack.packet_id) else {
            self.outbox.settle_burned(ack.packet_id);
            return;
        };
        if !fits(&sent) {
            return;
        }
        self.outbox.finish(id);
        self.events.push_back(if ack.reason.is_error() {
            Event::Failed { id, reason: ack.reason }
        } else {
            Event::Confirmed { id }
        });
    }
}
