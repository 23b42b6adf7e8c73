//! The task of one serial port: opens it, feeds its decoder, and opens it again when it goes away.

use std::time::Duration;

use drivers::schedule::{Lifecycle, State};
use drivers::{BadReason, Decoder, DeviceError, Driver, Quality, Samples, Wires, monotonic_ns};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{DeviceConfig, Feed, Outlet};

/// A serial port's task, seen from outside. Dropping it stops the task.
#[derive(Debug)]
pub(super) struct StreamTask {
    device: DeviceConfig,
    _stop: DropGuard,
}

struct Stream {
    feed: Feed,
    decoder: Box<dyn Decoder>,
    life: Lifecycle,
    samples: Samples,
    is_silent: bool,
    rejected: u64,
}

impl StreamTask {
    /// Starts it. It lets go of `running` when it ends.
    pub(super) fn start(device: DeviceConfig, outlet: Outlet, running: mpsc::Sender<()>) -> Self {
        let stop = CancellationToken::new();
        let theirs = stop.clone();
        let config = device.clone();
        tokio::spawn(async move {
            let _running = running;
            // Nothing is lost by stopping at any await: bytes not yet decoded are of no use to anyone.
            let _ = theirs.run_until_cancelled(run(config, outlet)).await;
        });
        Self { device, _stop: stop.drop_guard() }
    }

    /// Whether it already does what `device` asks for.
    pub(super) fn is_for(&self, device: &DeviceConfig) -> bool {
        self.device == *device
    }
}

async fn run(config: DeviceConfig, outlet: Outlet) {
    let life = Lifecycle::new(&config.name, config.interval, monotonic_ns());
    let built = decoder(&config);
    let mut feed = Feed::new(config, outlet);
    let decoder = match built {
        Ok(decoder) => decoder,
        Err(error) => return feed.say_state(State::Absent, Some(error.to_string())),
    };
    let mut stream = Stream { feed, decoder, life, samples: Samples::new(), is_silent: false, rejected: 0 };
    let mut last_error = None;
    loop {
        let error = stream.read_until_error().await;
        let has_changed = stream.life.failed(&error, monotonic_ns());
        if has_changed || last_error.as_ref() != Some(&error) {
            stream.feed.say_state(stream.life.state(), Some(error.to_string()));
        }
        stream.feed.fail(&error);
        last_error = Some(error);
        let wait_ns = stream.life.due_ns().saturating_sub(monotonic_ns());
        tokio::time::sleep(Duration::from_nanos(wait_ns)).await;
    }
}

fn decoder(config: &DeviceConfig) -> Result<Box<dyn Decoder>, DeviceError> {
    match config.setup.build(&Wires::new())? {
        Driver::Stream(decoder) => Ok(decoder),
        Driver::Polled(_) | Driver::Events(_) => Err(DeviceError::Config("not a serial device".to_owned())),
    }
}

impl Stream {
    /// Opens the port and reads it until it fails.
    async fn read_until_error(&mut self) -> DeviceError {
        let mut port = match self.decoder.port().open() {
            Ok(port) => port,
            Err(error) => return error,
        };
        self.decoder.reset();
        self.feed.set_channels(self.decoder.channels());
        let patience = (self.feed.config.interval * SILENT_INTERVALS).max(SHORTEST_PATIENCE);
        let mut silent_at = Instant::now() + patience;
        let mut buffer = vec![0; READ_BYTES];
        if self.life.succeeded(monotonic_ns()) {
            self.feed.say_state(State::Online, None);
        }
        loop {
            match tokio::time::timeout_at(silent_at, port.read(&mut buffer)).await {
                Ok(Ok(0)) => return DeviceError::NotPresent(self.decoder.port().port.as_str().to_owned()),
                Ok(Ok(count)) => {
                    if self.take(&buffer[..count]) {
                        silent_at = Instant::now() + patience;
                    }
                }
                Ok(Err(error)) => return DeviceError::from_io(self.decoder.port().port.as_str(), &error),
                Err(_) => {
                    silent_at = Instant::now() + patience;
                    if !std::mem::replace(&mut self.is_silent, true) {
                        let detail = format!("nothing readable for {} s", patience.as_secs());
                        self.feed.say_state(State::Degraded, Some(detail));
                    }
                    self.feed.say_bad(Quality::Bad(BadReason::Stale));
                }
            }
        }
    }

    /// Decodes what came. Answers whether it held anything.
    fn take(&mut self, bytes: &[u8]) -> bool {
        self.decoder.feed(bytes, monotonic_ns(), &mut self.samples);
        if let Some(fix) = self.decoder.take_time() {
            self.feed.take_fix(fix);
        }
        let rejected = self.decoder.rejected();
        if rejected > self.rejected {
            log::debug!(device:% = self.feed.config.name; "{} lines made no sense", rejected - self.rejected);
            self.rejected = rejected;
        }
        if self.samples.is_empty() {
            return false;
        }
        self.feed.set_channels(self.decoder.channels());
        if std::mem::take(&mut self.is_silent) {
            self.feed.say_state(State::Online, None);
        }
        self.feed.deliver(&mut self.samples);
        true
    }
}

const READ_BYTES: usize = 4096;

/// So many intervals without a value, and at least this long, are a silence worth telling.
const SILENT_INTERVALS: u32 = 3;
const SHORTEST_PATIENCE: Duration = Duration::from_secs(5);
