//! RabbitMQ as the AMQP broker on the far side.
//!
//! The node lives in a directory of its own: cookie, database, name and ports (AMQP, distribution and the port mapper)
//! are all its own, so that it neither meets nor needs a node of the machine's, and any user can run it.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::{Authority, Port, Process, Scratch, tool};

/// A node. User `guest`, password `guest`, virtual host `/`.
#[derive(Debug)]
pub struct RabbitMq {
    scratch: Scratch,
    amqp: Port,
    amqp_tls: Port,
    stream: Port,
    stream_tls: Port,
    distribution: Port,
    mapper_port: Port,
    node: Option<Process>,
    mapper: Process,
    start_time: Duration,
}

/// What a test may want of the node.
#[derive(Debug, Clone, Copy, Default)]
pub struct RabbitMqConfig<'a> {
    /// Streams and their protocol on [`RabbitMq::stream`].
    pub streams: bool,
    /// AMQP 1.0 beside 0-9-1 on [`RabbitMq::address`].
    pub amqp10: bool,
    /// TLS listeners with a certificate of this authority, which also has to have signed the client's; whose common
    /// name is a user may then log in by SASL EXTERNAL.
    pub tls: Option<&'a Authority>,
}

impl RabbitMq {
    /// Starts a new node without plugins; takes several seconds.
    pub fn start() -> Self {
        Self::with(RabbitMqConfig::default())
    }

    /// Starts a new node.
    pub fn with(config: RabbitMqConfig<'_>) -> Self {
        let scratch = Scratch::new("rabbitmq");
        for dir in ["home", "mnesia", "log"] {
            scratch.dir(dir);
        }
        let [amqp, amqp_tls, stream, stream_tls, distribution, mapper_port] =
            std::array::from_fn(|_| Port::reserve());
        let mut lines = vec![
            format!("listeners.tcp.1 = 127.0.0.1:{amqp}"),
            "log.console = true".to_owned(),
            "log.console.level = info".to_owned(),
        ];
        let mut plugins = Vec::new();
        if config.streams {
            plugins.push("rabbitmq_stream");
            lines.push(format!("stream.listeners.tcp.1 = 127.0.0.1:{stream}"));
        }
        if config.amqp10 {
            plugins.push("rabbitmq_amqp1_0");
            // A client that says nothing of a user is nobody: no anonymous login as the default user.
            lines.push("amqp1_0.default_user = none".to_owned());
        }
        if let Some(authority) = config.tls {
            plugins.push("rabbitmq_auth_mechanism_ssl");
            let server = authority.server();
            lines.extend([
                format!("listeners.ssl.1 = 127.0.0.1:{amqp_tls}"),
                format!("ssl_options.cacertfile = {}", authority.pem().display()),
                format!("ssl_options.certfile = {}", server.pem.display()),
                format!("ssl_options.keyfile = {}", server.key.display()),
                "ssl_options.verify = verify_peer".to_owned(),
                "ssl_options.fail_if_no_peer_cert = false".to_owned(),
                "ssl_cert_login_from = common_name".to_owned(),
                "auth_mechanisms.1 = PLAIN".to_owned(),
                "auth_mechanisms.2 = EXTERNAL".to_owned(),
            ]);
            if config.streams {
                lines.push(format!("stream.listeners.ssl.1 = 127.0.0.1:{stream_tls}"));
            }
        }
        scratch.write("rabbitmq.conf", lines.join("\n") + "\n");
        scratch.write("advanced.config", "[{kernel,[{inet_dist_use_interface,{127,0,0,1}}]}].\n");
        scratch.write("enabled_plugins", format!("[{}].\n", plugins.join(",")));
        // A node that finds no port mapper starts one that outlives it: so ours is there first.
        let mut command = Command::new(tool("epmd"));
        command.args(["-port", &mapper_port.to_string(), "-address", "127.0.0.1"]);
        let mapper = Process::start("epmd", &scratch, command);
        let mut broker = Self {
            scratch,
            amqp,
            amqp_tls,
            stream,
            stream_tls,
            distribution,
            mapper_port,
            node: None,
            mapper,
            start_time: Duration::ZERO,
        };
        broker.restart();
        broker
    }

    /// `127.0.0.1:PORT` of AMQP.
    pub fn address(&self) -> SocketAddr {
        self.amqp.address()
    }

    /// AMQP over TLS, where the node has it.
    pub fn tls(&self) -> SocketAddr {
        self.amqp_tls.address()
    }

    /// The stream protocol, where the node has it.
    pub fn stream(&self) -> SocketAddr {
        self.stream.address()
    }

    /// The stream protocol over TLS, where the node has both.
    pub fn stream_tls(&self) -> SocketAddr {
        self.stream_tls.address()
    }

    /// The node's process.
    pub fn process(&self) -> &Process {
        self.node.as_ref().expect("RabbitMQ was stopped by the test")
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
        // The listeners of plugins come last.
        node.wait_for_line("Server startup complete", Duration::from_secs(120));
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
