//! `nmea`: GNSS receivers, compasses, anemometers and echo sounders that speak NMEA 0183 (IEC 61162-1) on a serial
//! port. A sentence without the right checksum is not believed. Channels appear when their sentence first does.
//!
//! Most sentences are read by the `nmea` crate; DBT and XDR, which it does not know, are read here.

use std::sync::Arc;
use std::time::Duration;

use nmea::ParseResult;
use nmea::sentences::mwv::{MwvReference, MwvWindSpeedUnits};
use nmea::sentences::rmc::RmcStatusOfFix;
use serde::Deserialize;
use toml::Spanned;

use super::lines::Lines;
use crate::bus::serial::{Frame, PortPath, SerialSettings, check_baud};
use crate::channel::{ChannelSpec, name_from};
use crate::error::DeviceError;
use crate::gnss::{TimeFix, TimeReader};
use crate::samples::Samples;
use crate::settings::{SettingsError, parse_settings};
use crate::setup::{BusKey, Decoder, DeviceType, Driver, Setup, Wires};
use crate::value::decimal;

pub(super) static TYPE: DeviceType = DeviceType {
    name: "nmea",
    summary: "GNSS receiver, compass, anemometer or echo sounder that speaks NMEA 0183",
    example: r#"port = "/dev/serial/by-id/usb-u-blox_GNSS_receiver-if00"
baud = 9600          # 4800 on boats, 9600 for most receivers
time = true          # a receiver with a fix sets the gateway's time while no time server does
"#,
    parse: |table| {
        let s: Settings = parse_settings(table)?;
        let baud =
            check_baud(*s.baud.get_ref()).map_err(|message| SettingsError::at(s.baud.span(), message))?;
        let serial = SerialSettings { port: s.port, baud, frame: Frame::default() };
        Ok(Arc::new(NmeaSetup { serial, gives_time: s.time }))
    },
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    port: PortPath,
    #[serde(default = "default_baud")]
    baud: Spanned<u32>,
    #[serde(default = "default_time")]
    time: bool,
}

#[derive(Debug, PartialEq)]
struct NmeaSetup {
    serial: SerialSettings,
    gives_time: bool,
}

struct NmeaDecoder {
    serial: SerialSettings,
    lines: Lines,
    channels: Vec<ChannelSpec>,
    rejected: u64,
    time: Option<TimeReader>,
}

/// Puts a sentence's values into channels, making those that are new.
struct Sink<'a> {
    channels: &'a mut Vec<ChannelSpec>,
    now_ns: u64,
    out: &'a mut Samples,
}

impl Setup for NmeaSetup {
    fn bus(&self) -> BusKey {
        BusKey::Serial(self.serial.port.as_str().to_owned())
    }

    fn occupies(&self) -> Option<String> {
        Some(format!("serial port {}", self.serial.port.as_str()))
    }

    fn channels(&self) -> Vec<ChannelSpec> {
        Vec::new()
    }

    fn default_interval(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn missing(&self) -> Option<String> {
        self.serial.missing()
    }

    fn build(&self, _wires: &Wires) -> Result<Driver, DeviceError> {
        Ok(Driver::Stream(Box::new(NmeaDecoder {
            serial: self.serial.clone(),
            lines: Lines::new(LONGEST_LINE),
            channels: Vec::new(),
            rejected: 0,
            time: self.gives_time.then(TimeReader::default),
        })))
    }
}

impl Decoder for NmeaDecoder {
    fn port(&self) -> &SerialSettings {
        &self.serial
    }

    fn channels(&self) -> &[ChannelSpec] {
        &self.channels
    }

    fn feed(&mut self, bytes: &[u8], now_ns: u64, out: &mut Samples) {
        let Self { lines, channels, rejected, time, .. } = self;
        lines.feed(bytes, |line| match sentence(line) {
            Some((whole, body)) => {
                if let Some(time) = time {
                    time.read(body, now_ns);
                }
                read(whole, body, &mut Sink { channels, now_ns, out });
            }
            None => *rejected += 1,
        });
    }

    fn reset(&mut self) {
        self.lines.reset();
    }

    fn rejected(&self) -> u64 {
        self.rejected + self.lines.rejected()
    }

    fn take_time(&mut self) -> Option<TimeFix> {
        self.time.as_mut()?.take_fix()
    }
}

impl Sink<'_> {
    /// The crate's `f32` in the digits that stood in the sentence.
    fn put_f32(&mut self, value: Option<f32>, spec: impl FnOnce() -> ChannelSpec) {
        self.put(value.map(decimal), spec);
    }

    fn put(&mut self, value: Option<impl Into<f64>>, spec: impl FnOnce() -> ChannelSpec) {
        let Some(value) = value else { return };
        let spec = spec();
        let known = self.channels.iter().position(|channel| channel.name == spec.name);
        let channel = known.unwrap_or_else(|| {
            self.channels.push(spec);
            self.channels.len() - 1
        });
        if channel < MOST_CHANNELS {
            self.out.put_at(channel, value.into(), self.now_ns);
        } else {
            self.channels.truncate(MOST_CHANNELS);
        }
    }
}

/// The last sentence of a line, once with and once without `$` and checksum. A sentence that was cut off by the next
/// one is lost, the next one is not.
fn sentence(line: &str) -> Option<(&str, &str)> {
    let whole = &line[line.rfind('$')?..];
    let (body, sum) = whole[1..].rsplit_once('*')?;
    let sum = u8::from_str_radix(sum.get(..2)?, 16).ok()?;
    let is_right = body.is_ascii() && body.bytes().fold(0, |sum, byte| sum ^ byte) == sum;
    is_right.then_some((&whole[..body.len() + 4], body))
}

fn read(whole: &str, body: &str, sink: &mut Sink<'_>) {
    let mut fields = body.split(',');
    let address = fields.next().unwrap_or_default();
    match address.get(2..) {
        Some("DBT") => {
            // Feet, metres and fathoms, each before its letter.
            let metres = fields.nth(2).and_then(|metres| metres.parse::<f64>().ok());
            sink.put(metres, || depth("depth"));
        }
        Some("XDR") => transducers(fields, sink),
        _ => {
            if let Ok(parsed) = nmea::parse_str(whole) {
                known(parsed, sink);
            }
        }
    }
}

fn known(parsed: ParseResult, sink: &mut Sink<'_>) {
    match parsed {
        ParseResult::GGA(gga) => {
            let has_fix = gga.fix_type.is_some_and(|fix| fix != nmea::sentences::FixType::Invalid);
            sink.put(gga.fix_satellites, || {
                ChannelSpec::number("satellites", "").digits(0).within(0.0, 100.0)
            });
            sink.put_f32(gga.hdop.filter(|_| has_fix), || ChannelSpec::number("hdop", "").within(0.0, 100.0));
            sink.put_f32(gga.altitude.filter(|_| has_fix), || {
                ChannelSpec::number("altitude", "m").digits(1).within(-1000.0, 100_000.0).class("distance")
            });
            position(gga.latitude.filter(|_| has_fix), gga.longitude, sink);
        }
        ParseResult::RMC(rmc) => {
            let has_fix = rmc.status_of_fix != RmcStatusOfFix::Invalid;
            position(rmc.lat.filter(|_| has_fix), rmc.lon, sink);
            sink.put(rmc.speed_over_ground.filter(|_| has_fix).map(metres_per_second), || speed("speed"));
            sink.put_f32(rmc.true_course.filter(|_| has_fix), || angle("course"));
        }
        ParseResult::GLL(gll) if gll.valid => position(gll.latitude, gll.longitude, sink),
        ParseResult::VTG(vtg) => {
            sink.put_f32(vtg.true_course, || angle("course"));
            sink.put(vtg.speed_over_ground.map(metres_per_second), || speed("speed"));
        }
        ParseResult::HDT(hdt) => sink.put_f32(hdt.heading, || angle("heading")),
        ParseResult::VHW(vhw) => {
            sink.put(vhw.heading_true, || angle("heading"));
            sink.put(vhw.relative_speed_knots.map(|knots| knots * KNOT), || speed("water_speed"));
        }
        ParseResult::MWV(mwv) if mwv.data_valid => {
            let is_true = mwv.reference == Some(MwvReference::Theoretical);
            let name =
                if is_true { ["true_wind_angle", "true_wind_speed"] } else { ["wind_angle", "wind_speed"] };
            sink.put_f32(mwv.wind_direction, || angle(name[0]));
            let scale = match mwv.wind_speed_units {
                Some(MwvWindSpeedUnits::KilometersPerHour) => 1.0 / 3.6,
                Some(MwvWindSpeedUnits::MetersPerSecond) => 1.0,
                Some(MwvWindSpeedUnits::Knots) => KNOT,
                Some(MwvWindSpeedUnits::MilesPerHour) => 0.44704,
                None => return,
            };
            let metres = mwv.wind_speed.map(|wind| decimal(wind) * scale);
            sink.put(metres, || speed(name[1]).class("wind_speed"));
        }
        ParseResult::DPT(dpt) => sink.put(dpt.water_depth, || depth("depth")),
        ParseResult::DBS(dbs) => sink.put_f32(dbs.water_depth_meters, || depth("depth_below_surface")),
        ParseResult::MTW(mtw) => sink.put(mtw.temperature, || {
            ChannelSpec::number("water_temperature", "Cel").digits(1).within(-10.0, 60.0).class("temperature")
        }),
        _ => {}
    }
}

/// XDR: type, value, unit and name of each transducer.
fn transducers<'a>(mut fields: impl Iterator<Item = &'a str>, sink: &mut Sink<'_>) {
    while let (Some(kind), Some(value), Some(unit), Some(name)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    {
        let Ok(value) = value.parse::<f64>() else { continue };
        let Some(name) = name_from(&format!("xdr {name}")) else { continue };
        let (unit, scale, offset) = match (kind, unit) {
            ("C", "C") => ("Cel", 1.0, 0.0),
            ("C", "K") => ("Cel", 1.0, -273.15),
            ("P", "B") => ("Pa", 1e5, 0.0),
            ("P", "P") => ("Pa", 1.0, 0.0),
            ("H", "P") => ("%RH", 1.0, 0.0),
            ("A", "D") => ("deg", 1.0, 0.0),
            ("U", "V") => ("V", 1.0, 0.0),
            ("I", "A") => ("A", 1.0, 0.0),
            ("D", "M") => ("m", 1.0, 0.0),
            ("T", "R") => ("rpm", 1.0, 0.0),
            ("F", "H") => ("Hz", 1.0, 0.0),
            _ => ("", 1.0, 0.0),
        };
        sink.put(Some(value * scale + offset), || ChannelSpec::number(name, unit));
    }
}

fn position(latitude: Option<f64>, longitude: Option<f64>, sink: &mut Sink<'_>) {
    let (Some(latitude), Some(longitude)) = (latitude, longitude) else { return };
    sink.put(Some(latitude), || ChannelSpec::number("latitude", "lat").digits(6).within(-90.0, 90.0));
    sink.put(Some(longitude), || ChannelSpec::number("longitude", "lon").digits(6).within(-180.0, 180.0));
}

fn angle(name: &'static str) -> ChannelSpec {
    ChannelSpec::number(name, "deg").digits(1).within(0.0, 360.0)
}

fn speed(name: &'static str) -> ChannelSpec {
    ChannelSpec::number(name, "m/s").within(0.0, 1000.0).class("speed")
}

fn depth(name: &'static str) -> ChannelSpec {
    ChannelSpec::number(name, "m").within(0.0, 12_000.0).class("distance")
}

fn metres_per_second(knots: f32) -> f64 {
    decimal(knots) * KNOT
}

fn default_baud() -> Spanned<u32> {
    Spanned::new(0..0, 9600)
}

fn default_time() -> bool {
    true
}

/// 1852 m in an hour.
const KNOT: f64 = 1852.0 / 3600.0;

/// The standard has 82; receivers stretch that.
const LONGEST_LINE: usize = 256;

/// Transducers could invent names without end.
const MOST_CHANNELS: usize = 64;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::device::tests::{decoder, transcript};

    #[test]
    fn a_receivers_sentences_become_channels() {
        // The sentences of the crate's and gpsd's documentation.
        transcript(
            "nmea",
            TYPE.example,
            "<< $GPGGA,092750.000,5321.6802,N,00630.3372,W,1,8,1.03,61.7,M,55.2,M,,*76\\r\\n\n\
             = satellites 8\n= hdop 1.03\n= altitude 61.7 m\n= latitude 53.361337 lat\n= longitude -6.50562 lon\n\
             << $GPRMC,225446.33,A,4916.45,N,12311.12,W,000.5,054.7,191194,020.3,E,A*2B\\r\\n\n\
             = latitude 49.274167 lat\n= longitude -123.185333 lon\n= speed 0.257222 m/s\n= course 54.7 deg\n\
             << $GPHDT,274.07,T*03\\r\\n$WIMWV,214.8,R,0.1,K,A*28\\r\\n\n\
             = heading 274.07 deg\n= wind_angle 214.8 deg\n= wind_speed 0.027778 m/s\n",
        );
    }

    #[test]
    fn depths_and_transducers_are_read_here() {
        transcript(
            "nmea",
            TYPE.example,
            "<< $SDDBT,0017.6,f,0005.4,M,0002.9,F*3C\\r\\n\n= depth 5.4 m\n\
             << $WIXDR,C,19.52,C,TempAir,P,1.0146,B,Barometer*5C\\r\\n\n\
             = xdr_tempair 19.52 Cel\n= xdr_barometer 101460 Pa\n",
        );
    }

    #[test]
    fn a_sentence_with_a_wrong_checksum_or_none_is_not_believed() {
        let mut decoder = decoder("nmea", TYPE.example);
        let mut samples = Samples::new();
        decoder.feed(b"$GPHDT,274.08,T*03\r\n$GPHDT,274.07,T\r\n\xFF\xFE\r\n$*\r\n", 0, &mut samples);
        assert!(samples.is_empty());
        assert_eq!(decoder.rejected(), 4);
        // Cut off by the next sentence.
        decoder.feed(b"$GPGGA,09275$GPHDT,274.07,T*03\r\n", 0, &mut samples);
        assert_eq!(samples.as_slice().len(), 1);
    }

    #[test]
    fn a_receiver_with_a_fix_tells_the_time_unless_it_is_not_to() {
        let sentence = b"$GPRMC,225446.33,A,4916.45,N,12311.12,W,000.5,054.7,191194,020.3,E,A*2B\r\n";
        let told = |settings: &str| {
            let mut decoder = decoder("nmea", settings);
            decoder.feed(sentence, 42, &mut Samples::new());
            decoder.take_time()
        };
        let fix = told("port = \"/dev/ttyS0\"").unwrap();
        assert_eq!((fix.unix_ns, fix.at_ns), (785_285_686_330_000_000, 42));
        assert_eq!(told("port = \"/dev/ttyS0\"\ntime = false"), None);
    }

    #[test]
    fn no_fix_is_no_position() {
        let mut decoder = decoder("nmea", TYPE.example);
        let mut samples = Samples::new();
        decoder.feed(b"$GPGGA,133605.0,5521.75946,N,03731.93769,E,0,00,,,M,,M,,*4F\r\n", 0, &mut samples);
        assert!(
            decoder.channels().iter().all(|channel| channel.name == "satellites"),
            "{:?}",
            decoder.channels()
        );
    }

    proptest! {
        #[test]
        fn no_sentence_makes_it_fail(
            kind in "(GP|II|WI)(GGA|RMC|VTG|HDT|MWV|DBT|XDR|GLL|VHW|DPT|DBS|MTW|GSV|GSA|ZDA|TXT|[A-Z]{3})",
            fields in "[-0-9A-Z.,]{0,90}",
        ) {
            let body = format!("{kind},{fields}");
            let sum = body.bytes().fold(0, |sum, byte| sum ^ byte);
            let mut decoder = decoder("nmea", TYPE.example);
            let mut samples = Samples::new();
            decoder.feed(format!("${body}*{sum:02X}\r\n").as_bytes(), 0, &mut samples);
            prop_assert!(samples.as_slice().iter().all(|sample| sample.channel < decoder.channels().len()));
        }

        #[test]
        fn no_bytes_make_it_fail(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
            decoder("nmea", TYPE.example).feed(&bytes, 0, &mut Samples::new());
        }
    }
}
