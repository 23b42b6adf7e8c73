//! The keys of `type = "mqtt"`, and what can be wrong with them.

use std::any::Any;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, anyhow};
use drivers::Period;
use mqtt::{Qos, Version};
use serde::Deserialize;

use super::presets::{Devices, Dialect, Preset};
use super::transport::Route;
use super::{Mqtt, UPLINK, sas};
use crate::config::quantity::SecretSource;
use crate::payload::ROOT;
use crate::payload::parcel::{Compression, Encoding};
use crate::uplink::settings::{Common, Delivery};
use crate::uplink::tls::Tls;
use crate::uplink::{Context, Setup, Uplink, host_and_port};

/// `[[uplink]]` with `type = "mqtt"`, without the keys that all uplinks have.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `host:port`.
    address: String,
    /// The platform, if it wants things its own way.
    preset: Option<Preset>,
    version: Option<ProtocolVersion>,
    /// At AWS the thing's name, at Azure the device's id; otherwise made from gateway, uplink and store.
    client_id: Option<String>,
    username: Option<String>,
    password: Option<SecretSource>,
    /// `ThingsBoard`: the device's access token.
    access_token: Option<SecretSource>,
    /// Azure: the device's primary or secondary key, in base64 as the portal shows it.
    device_key: Option<SecretSource>,
    /// Azure: how long a token made from the key is good; it is renewed when a tenth of that is left.
    #[serde(default = "default_token_lifetime")]
    token_lifetime: Period,
    /// `ThingsBoard`: whose data it is.
    #[serde(default)]
    devices: Devices,
    tls: Option<Tls>,
    #[serde(default)]
    transport: Transport,
    /// The resource of the WebSocket.
    path: Option<String>,
    #[serde(default = "default_keep_alive")]
    keep_alive: Period,
    /// How long the broker keeps a message for subscribers that are away (5.0).
    message_expiry: Option<Period>,
    /// Whether `$state` is retained.
    retain: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum ProtocolVersion {
    #[serde(rename = "3.1.1")]
    V311,
    #[serde(rename = "5.0")]
    V5,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Tcp,
    WebSocket,
}

/// What CONNECT says of who we are.
pub struct Credentials {
    pub user: Option<String>,
    pub password: Option<Vec<u8>>,
    /// When the password ends: before that it has to be a new connection with a new one.
    pub renew_in: Option<Duration>,
}

impl Setup for Settings {
    fn type_name(&self) -> &'static str {
        UPLINK.name
    }

    fn target(&self) -> String {
        self.address.clone()
    }

    fn deliveries(&self) -> &'static [Delivery] {
        if self.preset.is_none_or(Preset::has_qos_2) {
            &[Delivery::AtMostOnce, Delivery::AtLeastOnce, Delivery::ExactlyOnce]
        } else {
            &[Delivery::AtMostOnce, Delivery::AtLeastOnce]
        }
    }

    fn problems(&self, common: &Common) -> Vec<String> {
        let mut problems: Vec<String> = self.tls.iter().flat_map(Tls::problems).collect();
        if host_and_port(&self.address).is_none() {
            problems.push(format!("`{}` is not host:port", self.address));
        }
        let secrets = [&self.password, &self.access_token, &self.device_key];
        problems.extend(secrets.into_iter().flatten().filter_map(|source| source.read().err()));
        let longest = self.preset.map_or(Duration::from_secs(65_535), Preset::longest_keep_alive);
        if self.keep_alive.0 > longest {
            problems.push(format!("keep_alive out of range: at most {}s", longest.as_secs()));
        }
        if self.message_expiry.is_some() && self.version() != Version::V5 {
            problems.push("message_expiry needs version = \"5.0\"".into());
        }
        match (self.transport, &self.path) {
            (Transport::Tcp, Some(_)) => problems.push("path needs transport = \"websocket\"".into()),
            (Transport::WebSocket, Some(path))
                if !path.starts_with('/') || path.contains(char::is_whitespace) =>
            {
                problems.push(format!("path is to begin with /: `{}`", path.escape_debug()));
            }
            _ => {}
        }
        self.problems_of_preset(common, &mut problems);
        problems
    }

    fn is_same(&self, other: &dyn Setup) -> bool {
        other.as_any().downcast_ref::<Self>() == Some(self)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn open(&self, context: Context) -> Box<dyn Uplink> {
        Box::new(Mqtt::new(self.clone(), context))
    }
}

impl Settings {
    /// How the broker is spoken to.
    pub fn dialect(&self, context: &Context) -> Dialect {
        let Context { name, origin, common } = context;
        let client_id = self.client_id.clone().unwrap_or_else(|| match self.preset {
            Some(Preset::AwsIot | Preset::AzureIotHub) => origin.gateway.clone(),
            // A new store counts from the beginning, and its messages are not those of the old one's session.
            _ => format!("{ROOT}-{}-{name}-{:014x}", origin.gateway, origin.epoch),
        });
        Dialect {
            preset: self.preset,
            gateway: origin.gateway.clone(),
            client_id,
            version: self.version(),
            qos: match common.delivery {
                Delivery::AtMostOnce => Qos::AtMostOnce,
                Delivery::AtLeastOnce => Qos::AtLeastOnce,
                Delivery::ExactlyOnce => Qos::ExactlyOnce,
            },
            is_retaining: self.retain.unwrap_or(self.preset != Some(Preset::AwsIot)),
            expiry: self.message_expiry.map(|expiry| expiry.0),
            devices: self.devices,
        }
    }

    /// The way there. A platform is reached by TLS whether or not it is said.
    pub fn route(&self) -> Route<'_> {
        let port = host_and_port(&self.address).map_or(0, |(_, port)| port);
        let websocket = match self.transport {
            Transport::Tcp => None,
            Transport::WebSocket => {
                let usual = self.preset.map_or("/mqtt", Preset::websocket_path);
                Some(self.path.as_deref().unwrap_or(usual))
            }
        };
        Route {
            address: &self.address,
            tls: self.tls.as_ref().or_else(|| self.preset.map(|_| &SYSTEM_TLS)),
            alpn: self.preset.and_then(|preset| preset.alpn(port)),
            websocket,
        }
    }

    /// What CONNECT says, made anew for every connection.
    ///
    /// # Errors
    /// A secret cannot be read, or is not what it is to be.
    pub fn credentials(&self, client_id: &str) -> anyhow::Result<Credentials> {
        let read = |source: &SecretSource| {
            source.read().map(|secret| secret.expose().to_vec()).map_err(|error| anyhow!(error))
        };
        let mut credentials = Credentials {
            user: self.username.clone(),
            password: self.password.as_ref().map(read).transpose()?,
            renew_in: None,
        };
        match self.preset {
            Some(Preset::AzureIotHub) => {
                let host = self.tls.as_ref().and_then(|tls| tls.server_name.as_deref());
                let host = host.or_else(|| host_and_port(&self.address).map(|(host, _)| host)).unwrap_or("");
                credentials.user = Some(format!("{host}/{client_id}/?api-version={AZURE_API}"));
                if let Some(key) = &self.device_key {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                    let lifetime = self.token_lifetime.0;
                    let token = sas::token(host, client_id, &read(key)?, (now + lifetime).as_secs())
                        .context("device_key is not base64")?;
                    credentials.password = Some(token.into_bytes());
                    credentials.renew_in = Some(lifetime.mul_f64(0.9));
                }
            }
            Some(Preset::ThingsBoard) => {
                if let Some(token) = &self.access_token {
                    let token = String::from_utf8(read(token)?).context("access_token is not UTF-8")?;
                    credentials.user = Some(token);
                }
            }
            _ => {}
        }
        Ok(credentials)
    }

    /// After how much silence a ping.
    pub fn keep_alive(&self) -> Duration {
        self.keep_alive.0
    }

    fn version(&self) -> Version {
        match self.version {
            Some(ProtocolVersion::V311) => Version::V311,
            Some(ProtocolVersion::V5) => Version::V5,
            None => self.preset.map_or(Version::V5, |preset| preset.version().0),
        }
    }

    fn problems_of_preset(&self, common: &Common, problems: &mut Vec<String>) {
        let preset = self.preset;
        let name = preset.map_or("no preset", Preset::name);
        let mut belongs = |is_set: bool, key: &str, to: Preset| {
            if is_set && preset != Some(to) {
                problems.push(format!("{key} belongs to preset = \"{}\", not to {name}", to.name()));
            }
        };
        belongs(self.device_key.is_some(), "device_key", Preset::AzureIotHub);
        belongs(self.token_lifetime != default_token_lifetime(), "token_lifetime", Preset::AzureIotHub);
        belongs(self.access_token.is_some(), "access_token", Preset::ThingsBoard);
        belongs(self.devices != Devices::default(), "devices", Preset::ThingsBoard);
        let Some(preset) = preset else { return };
        let has_certificate = self.tls.as_ref().is_some_and(|tls| tls.certificate.is_some());
        if let (version, true) = preset.version()
            && self.version() != version
        {
            problems.push(format!("{name} speaks no MQTT 5.0: leave version out"));
        }
        match preset {
            Preset::AwsIot if !has_certificate && self.username.is_none() => {
                problems
                    .push("aws-iot needs the thing's certificate: tls = { certificate = …, key = … }".into());
            }
            Preset::AzureIotHub => {
                if has_certificate == self.device_key.is_some() {
                    problems.push("azure-iot-hub needs either device_key or a certificate in tls".into());
                }
                if self.username.is_some() || self.password.is_some() {
                    problems.push("azure-iot-hub makes username and password itself, from device_key".into());
                }
                if !(MIN_TOKEN..=MAX_TOKEN).contains(&self.token_lifetime.0) {
                    problems.push("token_lifetime out of range: 10s to 365d".into());
                }
                if self.retain == Some(true) {
                    problems.push("azure-iot-hub retains nothing".into());
                }
            }
            Preset::ThingsBoard => {
                if self.access_token.is_none() && self.username.is_none() && !has_certificate {
                    problems.push("thingsboard needs access_token = { file = … }".into());
                }
                if self.access_token.is_some() && self.username.is_some() {
                    problems
                        .push("thingsboard takes access_token as the user name: leave username out".into());
                }
                if common.encoding != Encoding::SenmlJson || common.compression != Compression::None {
                    problems
                        .push("thingsboard reads its own JSON: leave encoding and compression out".into());
                }
            }
            _ => {}
        }
    }
}

fn default_keep_alive() -> Period {
    Period(Duration::from_secs(30))
}

fn default_token_lifetime() -> Period {
    Period(Duration::from_secs(3_600))
}

/// The certificates that the system trusts.
static SYSTEM_TLS: Tls = Tls { ca: None, certificate: None, key: None, server_name: None };
/// The API of `IoT` Hub that this speaks.
const AZURE_API: &str = "2021-04-12";
const MIN_TOKEN: Duration = Duration::from_secs(10);
const MAX_TOKEN: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::parcel::Origin;

    fn settings(text: &str) -> Settings {
        toml::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    fn problems(text: &str, common: &Common) -> String {
        let settings = settings(text);
        let mut problems = common.problems("mqtt", settings.deliveries());
        problems.extend(settings.problems(common));
        problems.join("\n")
    }

    fn exact() -> Common {
        Common { delivery: Delivery::ExactlyOnce, ..Common::default() }
    }

    fn context() -> Context {
        let origin = Origin { gateway: "barn".into(), epoch: 0xabc };
        Context { name: "cloud".into(), origin, common: Common::default() }
    }

    fn secret(text: &str) -> (tempfile::NamedTempFile, String) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let place = format!("{{ file = {:?} }}", file.path().display().to_string());
        (file, place)
    }

    #[test]
    fn a_plain_broker_needs_an_address_and_nothing_else() {
        let text = r#"address = "broker:1883""#;
        assert_eq!(problems(text, &exact()), "");
        let (settings, context) = (settings(text), context());
        let dialect = settings.dialect(&context);
        assert_eq!(dialect.client_id, "tidegate-barn-cloud-00000000000abc");
        assert_eq!((dialect.version, dialect.is_retaining), (Version::V5, true));
        let route = settings.route();
        assert!(route.tls.is_none() && route.alpn.is_none() && route.websocket.is_none());
        assert_eq!(
            problems("address = \"b:1\"\npath = \"/x\"", &exact()),
            "path needs transport = \"websocket\""
        );
        let old = "address = \"b:1\"\nversion = \"3.1.1\"\nmessage_expiry = \"1h\"";
        assert_eq!(problems(old, &exact()), "message_expiry needs version = \"5.0\"");
        let crossed = problems("address = \"b:1\"\ndevices = \"one\"", &exact());
        assert_eq!(crossed, "devices belongs to preset = \"thingsboard\", not to no preset");
    }

    #[test]
    fn aws_wants_a_certificate_the_things_name_and_no_exactly_once() {
        let (file, _) = secret("pem");
        let path = format!("{:?}", file.path().display().to_string());
        let tls = format!("tls = {{ certificate = {path}, key = {path} }}");
        let text =
            format!("address = \"x-ats.iot.eu-west-1.amazonaws.com:443\"\npreset = \"aws-iot\"\n{tls}");
        assert_eq!(problems(&text, &Common::default()), "");
        assert!(
            problems(&text, &exact()).contains("at-most-once, at-least-once"),
            "{}",
            problems(&text, &exact())
        );
        let settings = settings(&text);
        let dialect = settings.dialect(&context());
        assert_eq!((dialect.client_id.as_str(), dialect.is_retaining), ("barn", false));
        assert_eq!(settings.route().alpn, Some("x-amzn-mqtt-ca"));
        let bare = "address = \"x:8883\"\npreset = \"aws-iot\"";
        assert!(problems(bare, &Common::default()).contains("certificate"));
        assert!(self::settings(bare).route().tls.is_some() && self::settings(bare).route().alpn.is_none());
    }

    #[test]
    fn azure_gets_its_user_name_and_a_token_that_ends() {
        let (file, key) = secret("YSBkZXZpY2Uga2V5IG9mIDMyIGJ5dGVzIGV4YWN0bHk=\n");
        let text = format!(
            "address = \"hub.azure-devices.net:8883\"\npreset = \"azure-iot-hub\"\nclient_id = \"dev\"\ndevice_key = {key}"
        );
        assert_eq!(problems(&text, &Common::default()), "");
        let settings = settings(&text);
        let credentials = settings.credentials("dev").unwrap();
        assert_eq!(credentials.user.as_deref(), Some("hub.azure-devices.net/dev/?api-version=2021-04-12"));
        assert_eq!(credentials.renew_in, Some(Duration::from_secs(3_240)));
        let token = String::from_utf8(credentials.password.unwrap()).unwrap();
        let expires: u64 = token.rsplit_once("&se=").unwrap().1.parse().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        assert!((3_590..=3_600).contains(&(expires - now)), "{token}");
        let key = std::fs::read(file.path()).unwrap();
        assert_eq!(token, sas::token("hub.azure-devices.net", "dev", &key, expires).unwrap());

        for (more, wanted) in [
            ("version = \"5.0\"", "speaks no MQTT 5.0"),
            ("username = \"me\"", "makes username and password itself"),
            ("retain = true", "retains nothing"),
            ("token_lifetime = \"1s\"", "token_lifetime out of range"),
            ("keep_alive = \"1h\"", "at most 1767s"),
        ] {
            let found = problems(&format!("{text}\n{more}"), &Common::default());
            assert!(found.contains(wanted), "{more}: {found}");
        }
        assert!(problems(&text, &exact()).contains("exactly-once"));
        let bare = "address = \"h:8883\"\npreset = \"azure-iot-hub\"";
        assert!(problems(bare, &Common::default()).contains("either device_key or a certificate"));
    }

    #[test]
    fn thingsboard_takes_its_token_as_user_name_and_json_only() {
        let (_file, token) = secret("A1_TEST_TOKEN\n");
        let text = format!("address = \"tb:8883\"\npreset = \"thingsboard\"\naccess_token = {token}");
        assert_eq!(problems(&text, &Common::default()), "");
        let credentials = settings(&text).credentials("x").unwrap();
        assert_eq!((credentials.user.as_deref(), credentials.password), (Some("A1_TEST_TOKEN"), None));
        let binary = Common { encoding: Encoding::SenmlCbor, ..Common::default() };
        assert!(problems(&text, &binary).contains("its own JSON"));
        assert!(problems(&text, &exact()).contains("exactly-once"));
        let bare = "address = \"tb:1\"\npreset = \"thingsboard\"";
        assert!(problems(bare, &Common::default()).contains("access_token"));
    }

    #[test]
    fn hivemq_and_emqx_are_plain_brokers_behind_tls() {
        for name in ["hivemq", "emqx"] {
            let text = format!(
                "address = \"b:8884\"\npreset = \"{name}\"\ntransport = \"websocket\"\nusername = \"u\""
            );
            assert_eq!(problems(&text, &exact()), "");
            let settings = settings(&text);
            assert!(settings.route().tls.is_some());
            assert_eq!(settings.route().websocket, Some("/mqtt"));
            assert_eq!(settings.dialect(&context()).client_id, "tidegate-barn-cloud-00000000000abc");
        }
    }
}
