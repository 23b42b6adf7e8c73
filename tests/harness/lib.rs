//! What the tests stand on: real peers on free loopback ports, faults on the wire between them, the gateway under
//! test as a process of its own, and the ledger that says what was lost.
//!
//! Nothing here mocks: a peer is the program people run ([`Mosquitto`], [`Rumqttd`], [`RabbitMq`], [`Chromium`], Python clients),
//! started on a reserved port in its own directory, awaited by an event, stopped by the process id that was started,
//! and, when the test that used it fails, shown with the end of its log. A peer that is not installed fails the test
//! with its name ([`tool`]).

mod arrivals;
mod browser;
mod certificates;
mod endpoint;
mod http;
mod ledger;
mod loop_disk;
mod mosquitto;
mod mqtt;
mod port;
mod process;
mod proxy;
mod python;
mod rabbitmq;
mod rumqttd;
mod scratch;
mod seed;
mod tidegate;

pub use arrivals::{Arrivals, LaneReport, Store, rabbitmq};
pub use browser::{Chromium, Viewport};
pub use certificates::{Authority, Certificate, quoted};
pub use endpoint::{Endpoint, Stream, Transport, Wire};
pub use http::{Reply, request};
pub use ledger::{Id, Ledger, Report, record_of};
pub use loop_disk::{LoopDisk, Wear};
pub use mosquitto::{Door, Mosquitto, MosquittoConfig};
pub use mqtt::{Incoming, MqttClient};
pub use port::Port;
pub use process::{Process, unshare, wait_until};
pub use proxy::{FaultProxy, Mode};
pub use python::{AmqpLedger, MqttLedger, node, python, script};
pub use rabbitmq::{RabbitMq, RabbitMqConfig};
pub use rumqttd::{Rumqttd, rumqtt};
pub use scratch::Scratch;
pub use seed::Rng;
pub use tidegate::{Tidegate, TidegateBuilder, binary, sensor};

use std::env;
use std::path::PathBuf;

/// The path of a program that must be installed, looked up in `PATH` and in the system's own directories.
///
/// # Panics
/// When it is missing: a peer that is not there fails the test and is named.
pub fn tool(name: &str) -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/usr/bin", "/usr/lib/rabbitmq/bin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|dir| dir.join(name))
        .find(|candidate| candidate.is_file())
        .unwrap_or_else(|| panic!("missing peer: {name} is not installed; `tests/run tools` installs it"))
}

/// The root of the workspace.
pub fn workspace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_path_buf()
}

/// Where a run leaves what people look at afterwards: screenshots, figures, ledgers, inputs that broke something.
pub fn out_dir() -> PathBuf {
    let dir = workspace().join("tests/out");
    std::fs::create_dir_all(&dir).expect("tests/out can be created");
    dir
}
