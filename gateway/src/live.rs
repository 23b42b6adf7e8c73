//! The live copy: the last reading of every channel, on MQTT, on CoAP and for whoever asks. It waits for nothing.
//!
//! Topics, all retained but `set` and `set/result`. No channel's name begins with `$`, so none can be taken for a state:
//!
//! | topic | payload |
//! |---|---|
//! | `tidegate/<gateway>/$state` | `online`, `offline` |
//! | `tidegate/<gateway>/$state/alarm/<name>` | JSON: name, raised, text, time; the names stand in `alarm.rs` |
//! | `tidegate/<gateway>/<device>/$state` | JSON: state, detail, title, type, simulated |
//! | `tidegate/<gateway>/<device>/<channel>` | the value as text |
//! | `tidegate/<gateway>/<device>/<channel>/meta` | JSON: unit, quality, range, … |
//! | `tidegate/<gateway>/<device>/<channel>/set` | a command to an actuator |
//! | `tidegate/<gateway>/<device>/<channel>/set/result` | JSON: how it went |

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use drivers::{Quality, Value};
use mqtt::{Message, Qos, Topic};
use serde_json::json;

use crate::home_assistant;
use crate::listener::broker::BrokerHandle;
use crate::listener::coap::CoapHandle;
use crate::payload::{self, ROOT};
use crate::reading::{Channel, ChannelId, Reading};

/// The last readings and where they are shown. Cheap to clone.
#[derive(Clone)]
pub struct Live(Arc<Inner>);

struct Inner {
    gateway: String,
    broker: BrokerHandle,
    coap: CoapHandle,
    /// The topic prefix of Home Assistant's discovery; `None` when it is off.
    discovery: Mutex<Option<String>>,
    /// Shared between the sampler's events, which write, and the page and the CLI, which copy; never held for long.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    devices: BTreeMap<String, Device>,
    channels: BTreeMap<ChannelId, Shown>,
}

/// What is known of a device.
#[derive(Debug, Clone)]
pub struct Device {
    /// The device's name.
    pub name: String,
    /// What a person calls it.
    pub title: String,
    /// Its type in the configuration.
    pub type_name: String,
    /// The wire it hangs on.
    pub bus: String,
    /// Whether it is simulated.
    pub is_simulated: bool,
    /// How often it is read, in seconds; 0 for one that speaks by itself.
    pub interval_s: f64,
    /// `online`, `degraded`, `probing`, `absent`.
    pub state: &'static str,
    /// Why, where that helps.
    pub detail: String,
    /// How often it went from well to not.
    pub errors: u64,
    /// When it last gave a value.
    pub last: Option<Instant>,
}

struct Shown {
    channel: Arc<Channel>,
    reading: Option<Reading>,
}

impl Live {
    /// Nothing is known yet.
    pub fn new(gateway: String, broker: BrokerHandle, coap: CoapHandle, discovery: Option<String>) -> Self {
        let table = Mutex::default();
        Self(Arc::new(Inner { gateway, broker, coap, discovery: Mutex::new(discovery), table }))
    }

    /// The gateway's name.
    pub fn gateway(&self) -> &str {
        &self.0.gateway
    }

    /// Says whether the gateway is there; a clean stop says no.
    pub fn gateway_state(&self, is_online: bool) {
        self.retain("$state", if is_online { "online" } else { "offline" }.into());
    }

    /// Switches Home Assistant's discovery on, off, or to another prefix.
    pub fn set_discovery(&self, prefix: Option<String>) {
        let before = std::mem::replace(&mut *lock(&self.0.discovery), prefix.clone());
        if before != prefix {
            let devices: Vec<String> = lock(&self.0.table).devices.keys().cloned().collect();
            for device in devices {
                if let Some(before) = &before {
                    self.publish(&home_assistant::topic(before, self.gateway(), &device), Vec::new());
                }
                self.announce(&device);
            }
        }
    }

    /// A device is configured; nothing was read yet.
    pub fn add_device(&self, device: Device) {
        let name = device.name.clone();
        lock(&self.0.table).devices.insert(name.clone(), device);
        self.publish_device(&name);
    }

    /// A device is configured no more: everything retained of it is cleared.
    pub fn remove_device(&self, name: &str) {
        let mut table = lock(&self.0.table);
        table.devices.remove(name);
        let gone: Vec<ChannelId> = table.channels.keys().filter(|id| id.device() == name).cloned().collect();
        table.channels.retain(|id, _| id.device() != name);
        drop(table);
        for id in gone {
            self.retain(id.as_str(), Vec::new());
            self.retain(&format!("{id}/meta"), Vec::new());
        }
        self.retain(&format!("{name}/$state"), Vec::new());
        if let Some(prefix) = &*lock(&self.0.discovery) {
            self.publish(&home_assistant::topic(prefix, self.gateway(), name), Vec::new());
        }
        self.0.coap.remove(name);
    }

    /// A device told which channels it has.
    pub fn set_channels(&self, device: &str, channels: &[Arc<Channel>]) {
        let mut table = lock(&self.0.table);
        for channel in channels {
            match table.channels.get_mut(&channel.id) {
                Some(shown) => shown.channel = channel.clone(),
                None => {
                    table
                        .channels
                        .insert(channel.id.clone(), Shown { channel: channel.clone(), reading: None });
                }
            }
        }
        drop(table);
        for channel in channels {
            let meta = payload::meta(channel, Quality::Good, None).to_string();
            self.retain(&format!("{}/meta", channel.id), meta.into());
        }
        self.0.coap.announce(device, channels);
        self.announce(device);
    }

    /// A device's state changed.
    pub fn set_state(&self, name: &str, state: &'static str, detail: String) {
        if let Some(device) = lock(&self.0.table).devices.get_mut(name) {
            if device.state == "online" && state != "online" {
                device.errors += 1;
            }
            device.state = state;
            device.detail = detail;
        }
        self.publish_device(name);
    }

    /// A new reading: shown at once, everywhere.
    pub fn set_reading(&self, reading: &Reading) {
        let id = &reading.channel.id;
        let mut table = lock(&self.0.table);
        if let Some(device) = table.devices.get_mut(id.device())
            && reading.value.is_some()
        {
            device.last = Some(Instant::now());
        }
        let Some(shown) = table.channels.get_mut(id) else { return };
        let is_as_good = shown.reading.as_ref().is_some_and(|before| before.quality == reading.quality);
        let is_first = shown.reading.is_none();
        shown.reading = Some(reading.clone());
        drop(table);
        if let Some(text) = payload::text(reading) {
            self.retain(id.as_str(), text.into());
        }
        if is_first || !is_as_good {
            let meta = payload::meta(&reading.channel, reading.quality, Some(&reading.stamp)).to_string();
            self.retain(&format!("{id}/meta"), meta.into());
        }
        self.0.coap.update(reading);
    }

    /// How a command went, for whoever listens.
    pub fn publish_outcome(&self, channel: &ChannelId, json: &str) {
        if let Ok(topic) = Topic::new(format!("{ROOT}/{}/{channel}/set/result", self.gateway())) {
            self.0.broker.publish(Message::new(topic, json.to_owned()).with_qos(Qos::AtLeastOnce));
        }
    }

    /// An alarm began or ended.
    pub fn set_alarm(&self, name: &str, json: &str) {
        self.retain(&format!("$state/alarm/{name}"), json.into());
    }

    /// A channel by its id.
    pub fn channel(&self, id: &ChannelId) -> Option<Arc<Channel>> {
        lock(&self.0.table).channels.get(id).map(|shown| shown.channel.clone())
    }

    /// Every channel with its last reading, by name.
    pub fn channels(&self) -> Vec<(Arc<Channel>, Option<Reading>)> {
        lock(&self.0.table)
            .channels
            .values()
            .map(|shown| (shown.channel.clone(), shown.reading.clone()))
            .collect()
    }

    /// Every device, by name.
    pub fn devices(&self) -> Vec<Device> {
        lock(&self.0.table).devices.values().cloned().collect()
    }

    /// Tells Home Assistant of every device again: it says `online` when it has started.
    pub fn announce_all(&self) {
        let devices: Vec<String> = lock(&self.0.table).devices.keys().cloned().collect();
        for device in devices {
            self.announce(&device);
        }
    }

    fn announce(&self, name: &str) {
        let Some(prefix) = lock(&self.0.discovery).clone() else { return };
        let table = lock(&self.0.table);
        let Some(device) = table.devices.get(name) else { return };
        let channels: Vec<Arc<Channel>> = table
            .channels
            .values()
            .map(|shown| &shown.channel)
            .filter(|channel| channel.device() == name)
            .cloned()
            .collect();
        let config = home_assistant::config(self.gateway(), device, &channels);
        drop(table);
        self.publish(&home_assistant::topic(&prefix, self.gateway(), name), config.to_string().into());
    }

    fn publish_device(&self, name: &str) {
        let table = lock(&self.0.table);
        let Some(device) = table.devices.get(name) else { return };
        let json = json!({
            "state": device.state, "detail": device.detail, "title": device.title,
            "simulated": device.is_simulated, "type": device.type_name,
        });
        drop(table);
        self.retain(&format!("{name}/$state"), json.to_string().into());
    }

    /// Publishes below `tidegate/<gateway>/`, retained.
    fn retain(&self, path: &str, payload: Vec<u8>) {
        self.publish(&format!("{ROOT}/{}/{path}", self.gateway()), payload);
    }

    fn publish(&self, topic: &str, payload: Vec<u8>) {
        if let Ok(topic) = Topic::new(topic) {
            self.0.broker.publish(Message::new(topic, payload).retained());
        }
    }
}

/// The same reading with no more digits than its channel means.
pub fn rounded(mut reading: Reading) -> Reading {
    if let Some(Value::Number(number)) = &mut reading.value {
        let factor = 10f64.powi(i32::from(reading.channel.spec.precision));
        let round = (*number * factor).round() / factor;
        if round.is_finite() {
            *number = round;
        }
    }
    reading
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
