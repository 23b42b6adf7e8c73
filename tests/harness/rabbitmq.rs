//! RabbitMQ as the AMQP broker on the far side.
//!
//! The node lives in a directory of its own: cookie, database, name and ports (AMQP, distribution and the port mapper)
//! are all its own, so that it neither meets nor needs a node of the machine's, and any user can run it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Port, Process, Scratch, tool};

/// A node without plugins. User `guest`, password `guest`, virtual host `/`.
#[derive(Debug)]
pub struct RabbitMq {
    scratch: Scratch,
    amqp: Port,
    distribution: Port,
    mapper_port: Port,
    node: Option<Process>,
    mapper: Process,
    start_time: Duration,
}

impl RabbitMq {
    /// Starts a new node; takes several seconds.
    pub fn start() -> Self {
        let scratch = Scratch::new("rabbitmq");
        for dir in ["home", "mnesia", "log"] {
            scratch.dir(dir);
        }
        let (amqp, distribution, mapper_port) = (Port::reserve(), Port::reserve(), Port::reserve());
        scratch.write(
            "rabbitmq.conf",
            format!("listeners.tcp.1 = 127.0.0.1:{amqp}\nlog.console = true\nlog.console.level = info\n"),
        );
        scratch.write("advanced.config", "[{kernel,[{inet_dist_use_interface,{127,0,0,1}}]}].\n");
        scratch.write("enabled_plugins", "[].\n");
        // A node that finds no port mapper starts one that outlives it: so ours is there first.
        let mut command = Command::new(tool("epmd"));
        command.args(["-port", &mapper_port.to_string(), "-address", "127.0.0.1"]);
        let mapper = Process::start("epmd", &scratch, command);
        let mut broker =
            Self { scratch, amqp, distribution, mapper_port, node: None, mapper, start_time: Duration::ZERO };
        broker.restart();
        broker
    }

    /// `127.0.0.1:PORT` of AMQP.
    pub fn address(&self) -> SocketAddr {
        self.amqp.address()
    }

    /// How long the last start took, until the node listened.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// Starts it again on the same ports and data; does nothing while it runs.
    pub fn restart(&mut self) {
        if self.node.as_mut().is_some_and(Process::is_running) {
            return;
        }
        assert!(self.mapper.is_running(), "epmd ended by itself");
        let begun = Instant::now();
        let path = |name: &str| self.scratch.join(name);
        // The server's own script: Debian's wrapper in front of it runs only as root or rabbitmq.
        let mut command = Command::new("/usr/lib/rabbitmq/bin/rabbitmq-server");
        tool("rabbitmq-server");
        command
            .current_dir(path("home"))
            .env("HOME", path("home"))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.mapper_port.to_string())
            .env("RABBITMQ_NODENAME", format!("tidegate{}@localhost", self.amqp))
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("RABBITMQ_MNESIA_BASE", path("mnesia"))
            .env("RABBITMQ_LOG_BASE", path("log"))
            .env("RABBITMQ_LOGS", "-")
            .env("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", path("advanced.config"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins"))
            .env("RABBITMQ_CONF_ENV_FILE", path("no-environment-file"))
            // Makes the script become the node instead of waiting for it as a parent.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            .env_remove("NOTIFY_SOCKET");
        let node = Process::start("rabbitmq", &self.scratch, command);
        node.wait_for_line("started TCP listener on 127.0.0.1", Duration::from_secs(120));
        self.start_time = begun.elapsed();
        self.node = Some(node);
    }

    /// Stops it as an administrator would.
    pub fn stop(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.terminate(Duration::from_secs(60));
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill();
        }
    }
}
