use drivers::{BadReason, ChannelSpec, Driver, Quality, UncertainReason, Wires, device};
use tokio::io::AsyncWriteExt;
use tokio_serial::{SerialPort, SerialStream};
use toml::de::DeTable;

use super::*;
use crate::reading::ChannelId;

/// Long enough on a busy machine; nothing here waits that long when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(name: &str, kind: &str, toml: &str) -> DeviceConfig {
    let device_type = device::find(kind).unwrap();
    let setup = (device_type.parse)(DeTable::parse(toml).unwrap()).unwrap();
    DeviceConfig {
        name: name.to_owned(),
        type_name: device_type.name,
        title: None,
        interval: Duration::from_millis(20),
        absent_after: Duration::from_secs(60),
        setup,
        channels: BTreeMap::new(),
    }
}

struct World {
    sampler: Sampler,
    events: mpsc::Receiver<Event>,
}

impl World {
    fn new(room: usize, devices: Vec<DeviceConfig>) -> Self {
        let (sender, events) = mpsc::channel(room);
        let mut sampler = Sampler::new(Clock::new(), sender);
        sampler.apply(devices);
        Self { sampler, events }
    }

    /// The first event that `pick` makes something of.
    async fn until<T>(&mut self, mut pick: impl FnMut(Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                if let Some(found) = pick(self.events.recv().await.expect("the sampler runs")) {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect("it happens in time")
    }

    async fn state_of(&mut self, name: &str, wanted: State) -> Option<String> {
        self.until(|event| match event {
            Event::State { device, state, detail } if &*device == name && state == wanted => Some(detail),
            _ => None,
        })
        .await
    }

    async fn reading_of(&mut self, id: &str) -> Reading {
        self.until(|event| match event {
            Event::Readings(readings) => {
                readings.into_iter().find(|reading| reading.channel.id.as_str() == id)
            }
            _ => None,
        })
        .await
    }
}

/// The clock of simulated chips, in a test's hand: while it waits for what comes of a chip's absence, time that passes
/// on the machine changes nothing.
#[derive(Debug, Clone, Default)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    /// Pulls the plug, or puts it back in. Forwards only: the bus's clock never goes back.
    fn turn(&self) {
        self.0.fetch_add(DAY_NS, Ordering::Relaxed);
    }
}

/// A device whose chips live by the clock in `hands`.
#[derive(Debug, Clone)]
struct InHand {
    device: Arc<dyn Setup>,
    hands: Hands,
}

impl Setup for InHand {
    fn bus(&self) -> BusKey {
        self.device.bus()
    }

    fn channels(&self) -> Vec<ChannelSpec> {
        self.device.channels()
    }

    fn build(&self, wires: &Wires) -> Result<Driver, DeviceError> {
        let Hands(clock) = self.hands.clone();
        wires.sim("sim").borrow_mut().set_clock(move || clock.load(Ordering::Relaxed));
        self.device.build(wires)
    }
}

impl PartialEq for InHand {
    fn eq(&self, other: &Self) -> bool {
        *self.device == *other.device
    }
}

fn in_hand(config: DeviceConfig) -> (DeviceConfig, Hands) {
    let hands = Hands::default();
    let setup = InHand { device: config.setup, hands: hands.clone() };
    (DeviceConfig { setup: Arc::new(setup), ..config }, hands)
}

/// A day in, a day out.
const CYCLE: &str = "sim = { unplug_every = \"24h\", unplug_for = \"24h\" }";
const DAY_NS: u64 = 24 * 3600 * 1_000_000_000;

#[tokio::test]
async fn a_device_comes_online_before_its_first_reading() {
    let mut world = World::new(64, vec![config("attic", "bme280", "bus = \"sim\"")]);
    let Event::Online { device, channels } = world.until(Some).await else { panic!("online first") };
    assert_eq!((&*device, channels.len()), ("attic", 3));
    assert!(channels[0].is_simulated);
    assert!(matches!(world.until(Some).await, Event::State { state: State::Online, detail: None, .. }));
    let Event::Readings(readings) = world.until(Some).await else { panic!("then readings") };
    assert_eq!(readings.len(), 3);
    assert!(readings.iter().all(|reading| reading.quality.is_good()));
    world.sampler.stop().await;
}

#[tokio::test]
async fn calibration_and_the_users_range_apply() {
    let mut attic = config("attic", "bme280", "bus = \"sim\"");
    let wish =
        ChannelOverride { offset: Some(100.0), range: Some((0.0, 50.0)), ..ChannelOverride::default() };
    attic.channels.insert("temperature".to_owned(), wish);
    let mut world = World::new(64, vec![attic]);
    let reading = world.reading_of("attic/temperature").await;
    assert!((110.0..130.0).contains(&reading.value.unwrap().as_f64().unwrap()));
    assert_eq!(reading.quality, Quality::Uncertain(UncertainReason::Range));
    assert_eq!(reading.channel.spec.range, Some((0.0, 50.0)));
}

#[tokio::test]
async fn one_dead_device_says_so_once_and_delays_no_other() {
    // The simulated adapter exists, the real one does not: two threads.
    let devices =
        vec![config("dead", "bme280", "bus = \"i2c-9999\""), config("attic", "bme280", "bus = \"sim\"")];
    let mut world = World::new(1024, devices);
    let detail = world.state_of("dead", State::Absent).await;
    assert_eq!(detail.as_deref(), Some("/dev/i2c-9999 does not exist"));
    for _ in 0..20 {
        world.reading_of("attic/pressure").await;
    }
}

#[tokio::test]
async fn a_chip_that_is_unplugged_goes_bad_once_and_comes_back() {
    let (attic, hands) = in_hand(config("attic", "bme280", &format!("bus = \"sim\"\n{CYCLE}")));
    let mut world = World::new(4096, vec![attic]);
    world.state_of("attic", State::Online).await;
    hands.turn();
    // Degraded at first, absent after a third failure: it was asked several times while it was away.
    let mut bad = Vec::new();
    let mut count = |readings: Vec<Reading>| {
        bad.extend(
            readings.into_iter().filter(|reading| reading.value.is_none()).map(|it| it.channel.id.clone()),
        );
    };
    let mut states = Vec::new();
    world
        .until(|event| match event {
            Event::Readings(readings) => {
                count(readings);
                None
            }
            Event::State { state, .. } => {
                states.push(state);
                (state == State::Absent).then_some(())
            }
            Event::Online { .. } | Event::Lapsed { .. } => None,
        })
        .await;
    assert_eq!(states.first(), Some(&State::Degraded));
    hands.turn();
    world
        .until(|event| match event {
            Event::Readings(readings) => {
                count(readings);
                None
            }
            Event::State { state, .. } => (state == State::Online).then_some(()),
            Event::Online { .. } | Event::Lapsed { .. } => None,
        })
        .await;
    bad.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    let ids: Vec<&str> = bad.iter().map(ChannelId::as_str).collect();
    assert_eq!(ids, ["attic/humidity", "attic/pressure", "attic/temperature"], "each channel says so once");
    assert!(world.reading_of("attic/temperature").await.quality.is_good());
}

#[tokio::test]
async fn a_command_is_read_back_and_the_world_hears_of_it() {
    let mut relay = config("relay", "gpio-output", "line = \"lamp\"\nchip = \"sim\"");
    relay.interval = Duration::from_secs(3600);
    let mut world = World::new(64, vec![relay]);
    assert_eq!(world.reading_of("relay/state").await.value, Some(Value::Boolean(false)));
    let commander = world.sampler.commander();
    let deadline = Instant::now() + PATIENCE;
    let read_back = commander.command("relay", "state", Value::Boolean(true), deadline).await;
    assert_eq!(read_back, Ok(Value::Boolean(true)));
    assert_eq!(world.reading_of("relay/state").await.value, Some(Value::Boolean(true)));
    let late = commander.command("relay", "state", Value::Boolean(false), Instant::now()).await;
    assert_eq!(late, Err(CommandError::Expired));
    let unknown = commander.command("lamp", "state", Value::Boolean(true), deadline).await;
    assert_eq!(unknown, Err(CommandError::UnknownDevice("lamp".to_owned())));
    world.sampler.stop().await;
}

#[tokio::test]
async fn a_leased_output_goes_back_on_its_own_thread_while_nobody_takes_events() {
    let mut relay = config("relay", "gpio-output", "line = \"lamp\"\nchip = \"sim\"\nlease = \"1500ms\"");
    relay.interval = Duration::from_secs(3600);
    let mut world = World::new(64, vec![relay]);
    assert_eq!(world.reading_of("relay/state").await.value, Some(Value::Boolean(false)));
    let commander = world.sampler.commander();
    let deadline = Instant::now() + PATIENCE;
    let told = commander.command("relay", "state", Value::Boolean(true), deadline).await;
    assert_eq!(told, Ok(Value::Boolean(true)));
    // This runtime has one thread: nothing async runs while it sleeps. A machine may keep each step waiting for a second
    // and more without touching what is shown here.
    std::thread::sleep(Duration::from_millis(300));
    let told = commander.command("relay", "state", Value::Boolean(true), deadline).await;
    assert_eq!(told, Ok(Value::Boolean(true)));
    let renewed_ns = drivers::monotonic_ns();
    std::thread::sleep(Duration::from_millis(3000));
    let woke_ns = drivers::monotonic_ns();
    // On, on again, and off at the end of the second lease.
    let mut states = Vec::new();
    let (lapse, off_ns) = world
        .until(|event| match event {
            Event::Readings(readings) => {
                states
                    .extend(readings.into_iter().map(|reading| (reading.value, reading.stamp.monotonic_ns)));
                None
            }
            Event::Lapsed { device, lapse } => {
                assert_eq!(&*device, "relay");
                Some((lapse, states.last().unwrap().1))
            }
            _ => None,
        })
        .await;
    assert_eq!((&*lapse.channel, &lapse.value), ("state", &Value::Boolean(false)));
    let values: Vec<_> = states.iter().map(|(value, _)| value.clone().unwrap()).collect();
    assert_eq!(values, [Value::Boolean(true), Value::Boolean(true), Value::Boolean(false)]);
    // A whole lease from the second command on, and over before anybody took an event.
    let lease_ns = 1_500_000_000;
    assert!(off_ns - states[0].1 >= 300_000_000 + lease_ns, "{off_ns} {states:?}");
    assert!(off_ns < woke_ns, "{off_ns} {renewed_ns} {woke_ns}");
    world.sampler.stop().await;
}

#[tokio::test]
async fn a_reload_touches_only_what_changed() {
    let attic = config("attic", "bme280", "bus = \"sim\"");
    let cellar = config("cellar", "bme280", "bus = \"sim\"\naddress = 0x77");
    let mut world = World::new(1024, vec![attic.clone(), cellar.clone()]);
    world.state_of("cellar", State::Online).await;
    let slower = DeviceConfig { interval: Duration::from_millis(50), ..cellar };
    world.sampler.apply(vec![attic, slower]);
    world
        .until(|event| match event {
            Event::Online { device, .. } => {
                assert_eq!(&*device, "cellar");
                Some(())
            }
            _ => None,
        })
        .await;
    world.sampler.apply(Vec::new());
    world.sampler.stop().await;
    while world.events.recv().await.is_some() {}
}

#[tokio::test]
async fn a_slow_taker_costs_readings_and_nothing_else() {
    let mut world = World::new(1, vec![config("attic", "bme280", "bus = \"sim\"")]);
    let dropped = world.sampler.dropped();
    let wait = async {
        while dropped.load(Ordering::Relaxed) < 30 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("readings are dropped");
    // What matters was kept for whoever comes to take it.
    assert!(matches!(world.until(Some).await, Event::Online { .. }));
    assert!(matches!(world.until(Some).await, Event::State { state: State::Online, .. }));
    world.reading_of("attic/temperature").await;
}

#[tokio::test]
async fn a_serial_port_is_read_and_its_end_is_told() {
    let (mut far_end, near_end) = SerialStream::pair().unwrap();
    let port = near_end.name().unwrap();
    // The sampler wants the port for itself.
    drop(near_end);
    let toml = format!("port = {port:?}\nformat = \"json\"\nfields.t = {{ unit = \"Cel\" }}");
    let mut world = World::new(64, vec![config("probe", "serial-line", &toml)]);
    world.state_of("probe", State::Online).await;
    far_end.write_all(b"\xFF\xFEgarbage\n{\"t\":21.5}\n{\"t\":22,\"id\":\"x\"}\n").await.unwrap();
    assert_eq!(world.reading_of("probe/t").await.value, Some(Value::Number(21.5)));
    // A key that was not configured is a channel once it has come, and the same chunk's readings follow its news.
    far_end.write_all(b"{\"t\":23,\"door\":true}\n").await.unwrap();
    world
        .until(|event| match event {
            Event::Online { channels, .. } => {
                channels.iter().any(|channel| channel.name() == "door").then_some(())
            }
            _ => None,
        })
        .await;
    assert_eq!(world.reading_of("probe/door").await.value, Some(Value::Boolean(true)));
    drop(far_end);
    let bad = world.reading_of("probe/t").await;
    assert_eq!((bad.value, bad.quality), (None, Quality::Bad(BadReason::NoAnswer)));
    world.sampler.stop().await;
}

#[tokio::test]
async fn stopping_takes_no_longer_than_promised() {
    let devices = vec![
        config("door", "gpio-input", "line = \"door\"\nchip = \"sim\""),
        config("meter", "pulse-counter", "line = \"meter\"\nchip = \"sim\""),
        config("attic", "bme280", "bus = \"sim\""),
        config("host", "host", ""),
    ];
    let mut world = World::new(1024, devices);
    world.reading_of("meter/count").await;
    let begun = Instant::now();
    world.sampler.stop().await;
    assert!(begun.elapsed() < STOP_WITHIN, "{:?}", begun.elapsed());
}
