//! Reads what a consumer stored, a line at a time. `senml`'s own reader does not serve here: it refuses names that
//! SenML does not know, as LAN clients' topics are, and leaves out fields of our own, in which a record says its place.
//!
//! Bounds: a line [`MAX_LINE`] bytes, a body [`MAX_BODY`] when it is unpacked; beyond that a line is counted as
//! unreadable. Records are taken one by one, so a pack costs no more than its bytes.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufRead, Read as _};

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use minicbor::Decoder;
use minicbor::data::{Tag, Type};
use serde::Deserialize;
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};

use super::line::{Line, Value};
use super::manifest::NAME;
use super::verify::{Book, Full, Received};

/// What was read, beside the entries.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lines with something in them.
    pub lines: u64,
    /// Records that no gateway of ours sent: without `gw`, `epoch` and `seq`.
    pub foreign: u64,
    /// Lines, or what was behind a mistake in one, that could not be read.
    pub unreadable: u64,
    /// The first of those: where and why.
    pub mistakes: Vec<String>,
}

/// Why reading ended before the end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The input.
    #[error("{0}")]
    Input(#[from] io::Error),
    /// Our own bounds.
    #[error("{0}")]
    Full(#[from] Full),
}

/// Reads one input to its end. `name` stands before the number of the line in a mistake.
///
/// # Errors
/// [`ReadError`]: it cannot be read, or the book is full. A line that makes no sense is counted, and is no error.
pub fn read(
    name: &str,
    input: &mut dyn BufRead,
    book: &mut Book,
    tally: &mut Tally,
) -> Result<(), ReadError> {
    let mut line = Vec::new();
    let mut number = 0u64;
    loop {
        line.clear();
        if input.take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        number += 1;
        let result = if line.len() as u64 == MAX_LINE && line.last() != Some(&b'\n') {
            skip_line(input)?;
            Err(Refusal::Unreadable(format!("longer than {} MB", MAX_LINE >> 20)))
        } else {
            take_line(line.trim_ascii(), book, tally)
        };
        match result {
            Ok(()) => {}
            Err(Refusal::Full(full)) => return Err(full.into()),
            Err(Refusal::Unreadable(why)) => {
                tally.unreadable += 1;
                if tally.mistakes.len() < MAX_MISTAKES {
                    tally.mistakes.push(format!("{name}:{number}: {why}"));
                }
            }
        }
    }
}

enum Refusal {
    Full(Full),
    Unreadable(String),
}

impl From<Full> for Refusal {
    fn from(full: Full) -> Self {
        Self::Full(full)
    }
}

fn unreadable(why: impl fmt::Display) -> Refusal {
    Refusal::Unreadable(why.to_string())
}

/// A message of which a consumer kept the bytes.
#[derive(Deserialize)]
struct Envelope<'a> {
    content_type: Option<String>,
    content_encoding: Option<String>,
    #[serde(borrow)]
    body_base64: Option<Cow<'a, str>>,
}

fn take_line(line: &[u8], book: &mut Book, tally: &mut Tally) -> Result<(), Refusal> {
    if line.is_empty() {
        return Ok(());
    }
    tally.lines += 1;
    let mut pack = Pack::new(book, tally);
    if line[0] != b'{' {
        return pack.take_json(line);
    }
    let envelope: Envelope<'_> = serde_json::from_slice(line).map_err(unreadable)?;
    let Some(body) = envelope.body_base64 else {
        return pack.take(&serde_json::from_slice(line).map_err(unreadable)?).map_err(Refusal::Full);
    };
    let body = BASE64.decode(body.as_bytes()).map_err(unreadable)?;
    let body = match envelope.content_encoding.as_deref() {
        None | Some("" | "identity") => body,
        Some("zstd") => unpack(&body)?,
        Some(other) => {
            return Err(unreadable(format!("content_encoding {} is not known", other.escape_debug())));
        }
    };
    let kind = envelope.content_type.as_deref().unwrap_or(senml::MEDIA_TYPE_JSON);
    match kind.split(';').next().unwrap_or_default().trim() {
        senml::MEDIA_TYPE_JSON => pack.take_json(&body),
        senml::MEDIA_TYPE_CBOR => pack.take_cbor(&body),
        other => Err(unreadable(format!("content_type {} is not known", other.escape_debug()))),
    }
}

fn unpack(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut decoder = zstd::stream::read::Decoder::with_buffer(body).map_err(unreadable)?;
    decoder.window_log_max(MAX_WINDOW_LOG).map_err(unreadable)?;
    let mut unpacked = Vec::new();
    decoder.take(MAX_BODY + 1).read_to_end(&mut unpacked).map_err(unreadable)?;
    if unpacked.len() as u64 > MAX_BODY {
        return Err(unreadable(format!("larger than {} MB when unpacked", MAX_BODY >> 20)));
    }
    Ok(unpacked)
}

fn skip_line(input: &mut dyn BufRead) -> io::Result<()> {
    loop {
        let piece = input.fill_buf()?;
        let end = piece.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(piece.len(), |end| end + 1);
        input.consume(length);
        if end.is_some() || length == 0 {
            return Ok(());
        }
    }
}

/// The fields of a record that the ledger looks at; all others are passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Record<'a> {
    #[serde(borrow)]
    bn: Option<Cow<'a, str>>,
    bt: Option<f64>,
    #[serde(borrow)]
    bu: Option<Cow<'a, str>>,
    #[serde(borrow)]
    n: Option<Cow<'a, str>>,
    #[serde(borrow)]
    u: Option<Cow<'a, str>>,
    v: Option<f64>,
    #[serde(borrow)]
    vs: Option<Cow<'a, str>>,
    vb: Option<bool>,
    #[serde(borrow)]
    vd: Option<Cow<'a, str>>,
    t: Option<f64>,
    #[serde(borrow)]
    gw: Option<Cow<'a, str>>,
    #[serde(borrow)]
    epoch: Option<Cow<'a, str>>,
    seq: Option<u64>,
    #[serde(borrow)]
    quality: Option<Cow<'a, str>>,
    #[serde(borrow)]
    clock: Option<Cow<'a, str>>,
    corrected: Option<bool>,
    from: Option<u64>,
    to: Option<u64>,
    count: Option<u64>,
    raised: Option<bool>,
    offset: Option<i64>,
    error: Option<i64>,
    min: Option<f64>,
    max: Option<f64>,
    #[serde(borrow)]
    topic: Option<Cow<'a, str>>,
    #[serde(borrow)]
    encoding: Option<Cow<'a, str>>,
    /// `vd` of CBOR.
    #[serde(skip)]
    bytes: Option<&'a [u8]>,
}

/// What a pack's records hand on to those behind them.
struct Pack<'b> {
    book: &'b mut Book,
    tally: &'b mut Tally,
    gateway: String,
    epoch: String,
    prefix: String,
    seq: Option<u64>,
    base_name: String,
    base_time: Option<f64>,
    base_unit: Option<String>,
    name: String,
    scratch: String,
}

impl<'b> Pack<'b> {
    fn new(book: &'b mut Book, tally: &'b mut Tally) -> Self {
        Self {
            book,
            tally,
            gateway: String::new(),
            epoch: String::new(),
            prefix: String::new(),
            seq: None,
            base_name: String::new(),
            base_time: None,
            base_unit: None,
            name: String::new(),
            scratch: String::new(),
        }
    }

    fn take_json(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut full = None;
        let mut json = serde_json::Deserializer::from_slice(bytes);
        let read = json.deserialize_seq(Records { pack: self, full: &mut full });
        match (full, read.and_then(|()| json.end())) {
            (Some(full), _) => Err(Refusal::Full(full)),
            (None, Err(error)) => Err(unreadable(error)),
            (None, Ok(())) => Ok(()),
        }
    }

    fn take_cbor(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let mut decoder = Decoder::new(bytes);
        let length = decoder.array().map_err(unreadable)?;
        let mut read = 0;
        while length.map_or_else(|| !is_at_break(&decoder), |length| read < length) {
            self.take(&cbor_record(&mut decoder).map_err(unreadable)?)?;
            read += 1;
        }
        if length.is_none() {
            decoder.skip().map_err(unreadable)?;
        }
        if decoder.position() == bytes.len() { Ok(()) } else { Err(unreadable("bytes behind the pack")) }
    }

    /// One record, with what those before it said for all behind them.
    fn take(&mut self, record: &Record<'_>) -> Result<(), Full> {
        if let Some(name) = &record.bn {
            self.base_name.clear();
            self.base_name.push_str(name);
        }
        self.base_time = record.bt.or(self.base_time);
        if let Some(unit) = &record.bu {
            self.base_unit = Some(unit.clone().into_owned());
        }
        if let Some(gateway) = &record.gw {
            self.gateway = gateway.clone().into_owned();
            self.prefix = format!("{}/{gateway}/", crate::payload::ROOT);
        }
        if let Some(epoch) = &record.epoch {
            self.epoch = epoch.clone().into_owned();
        }
        // A place that is not given is the one behind the last.
        let seq = record.seq.or_else(|| self.seq?.checked_add(1)).filter(|seq| *seq < MAX_SEQ);
        self.seq = seq;
        let (1..=64, 1..=32, Some(seq)) = (self.gateway.len(), self.epoch.len(), seq) else {
            self.tally.foreign += 1;
            return Ok(());
        };
        self.name.clear();
        self.name.push_str(&self.base_name);
        self.name.push_str(record.n.as_deref().unwrap_or_default());
        let name = match &record.topic {
            Some(topic) => topic,
            None => self.name.strip_prefix(&self.prefix).unwrap_or(&self.name),
        };
        let data;
        let value = if record.topic.is_some() {
            // A LAN client's message: its payload, whether it could travel as text or not.
            let text = record.vs.as_deref().unwrap_or_default();
            match record.encoding.as_deref() {
                Some("base64url") => {
                    data = base64url(text);
                    Value::Bytes(&data)
                }
                _ => Value::Bytes(text.as_bytes()),
            }
        } else if let Some(number) = record.v {
            Value::Number(number)
        } else if let Some(truth) = record.vb {
            Value::Boolean(truth)
        } else if let Some(text) = &record.vs {
            Value::Text(text)
        } else if let Some(bytes) = record.bytes {
            Value::Bytes(bytes)
        } else if let Some(text) = &record.vd {
            data = base64url(text);
            Value::Bytes(&data)
        } else {
            Value::None
        };
        let is_known = record.corrected != Some(true)
            && record.clock.as_deref().is_none_or(|clock| !matches!(clock, "none" | "file" | "rtc"));
        let seconds = match (self.base_time, record.t) {
            (None, None) => None,
            (base, time) => Some(base.unwrap_or_default() + time.unwrap_or_default()),
        };
        let line = Line {
            seq,
            name,
            time_ms: seconds.filter(|_| is_known).map(|seconds| (seconds * 1e3).round() as i64),
            value,
            unit: record.u.as_deref().or(self.base_unit.as_deref()),
            quality: record.quality.as_deref(),
            from: record.from,
            to: record.to,
            count: record.count,
            raised: record.raised,
            offset: record.offset,
            error: record.error,
            min: record.min,
            max: record.max,
        };
        let manifest = if name == NAME && record.topic.is_none() { record.vs.as_deref() } else { None };
        let line = line.digest(&mut self.scratch);
        self.book.add(&Received { gateway: &self.gateway, epoch: &self.epoch, seq, line, manifest })
    }
}

/// Takes the records of a JSON pack one by one.
struct Records<'a, 'b> {
    pack: &'a mut Pack<'b>,
    full: &'a mut Option<Full>,
}

impl<'de> Visitor<'de> for Records<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of SenML records")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(record) = seq.next_element::<Record<'de>>()? {
            if let Err(full) = self.pack.take(&record) {
                *self.full = Some(full);
                return Err(A::Error::custom("full"));
            }
        }
        Ok(())
    }
}

fn cbor_record<'a>(decoder: &mut Decoder<'a>) -> Result<Record<'a>, minicbor::decode::Error> {
    let mut record = Record::default();
    let length = decoder.map()?;
    let mut read = 0;
    while length.map_or_else(|| !is_at_break(decoder), |length| read < length) {
        read += 1;
        if decoder.datatype()? == Type::String {
            match decoder.str()? {
                "gw" => record.gw = Some(decoder.str()?.into()),
                "epoch" => record.epoch = Some(decoder.str()?.into()),
                "seq" => record.seq = Some(decoder.u64()?),
                "quality" => record.quality = Some(decoder.str()?.into()),
                "clock" => record.clock = Some(decoder.str()?.into()),
                "corrected" => record.corrected = Some(decoder.bool()?),
                "from" => record.from = Some(decoder.u64()?),
                "to" => record.to = Some(decoder.u64()?),
                "count" => record.count = Some(decoder.u64()?),
                "raised" => record.raised = Some(decoder.bool()?),
                "offset" => record.offset = Some(decoder.i64()?),
                "error" => record.error = Some(decoder.i64()?),
                "topic" => record.topic = Some(decoder.str()?.into()),
                "encoding" => record.encoding = Some(decoder.str()?.into()),
                "min" => record.min = Some(number(decoder)?),
                "max" => record.max = Some(number(decoder)?),
                _ => decoder.skip()?,
            }
            continue;
        }
        // RFC 8428 §6, table 6. A label that is none of ours matches nothing.
        match i8::try_from(decoder.i64()?).unwrap_or(i8::MAX) {
            -2 => record.bn = Some(decoder.str()?.into()),
            -3 => record.bt = Some(number(decoder)?),
            -4 => record.bu = Some(decoder.str()?.into()),
            0 => record.n = Some(decoder.str()?.into()),
            1 => record.u = Some(decoder.str()?.into()),
            2 => record.v = Some(number(decoder)?),
            3 => record.vs = Some(decoder.str()?.into()),
            4 => record.vb = Some(decoder.bool()?),
            6 => record.t = Some(number(decoder)?),
            8 => record.bytes = Some(decoder.bytes()?),
            _ => decoder.skip()?,
        }
    }
    if length.is_none() {
        decoder.skip()?;
    }
    Ok(record)
}

/// Any of CBOR's numbers as `f64`, decimal fractions included.
fn number(decoder: &mut Decoder<'_>) -> Result<f64, minicbor::decode::Error> {
    match decoder.datatype()? {
        Type::F16 | Type::F32 | Type::F64 => decoder.f64(),
        Type::Tag => {
            if decoder.tag()? != Tag::new(DECIMAL_FRACTION) || decoder.array()? != Some(2) {
                return Err(minicbor::decode::Error::message("a tag that is no decimal fraction"));
            }
            let (exponent, mantissa) = (decoder.i16()?, decoder.i64()?);
            // By way of its digits: that rounds once.
            Ok(format!("{mantissa}e{exponent}").parse().unwrap_or(f64::NAN))
        }
        _ => Ok(decoder.i64()? as f64),
    }
}

/// What is no base64 is nothing that was signed: its text stands for it.
fn base64url(text: &str) -> Vec<u8> {
    BASE64URL.decode(text.as_bytes()).unwrap_or_else(|_| text.as_bytes().to_vec())
}

fn is_at_break(decoder: &Decoder<'_>) -> bool {
    matches!(decoder.datatype(), Ok(Type::Break) | Err(_))
}

/// As anybody writes it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// RFC 8428 §5.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// A line of input. Longer: passed over and counted as unreadable.
const MAX_LINE: u64 = 64 << 20;
/// A body when it is unpacked. Larger: the same.
const MAX_BODY: u64 = 64 << 20;
/// zstd's window: 16 MB; ours are smaller.
const MAX_WINDOW_LOG: u32 = 24;
const MAX_MISTAKES: usize = 10;
/// 2⁵³: what JSON readers hold exactly.
const MAX_SEQ: u64 = 1 << 53;
/// RFC 8949 §3.4.4: an array of a power of ten and a mantissa.
const DECIMAL_FRACTION: u64 = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use senml::{Extension, Record, Value as Written};

    use super::*;

    fn book_of(text: &[u8]) -> (Book, Tally) {
        let (mut book, mut tally) = (Book::default(), Tally::default());
        read("test", &mut &*text, &mut book, &mut tally).unwrap();
        (book, tally)
    }

    fn enveloped(kind: &str, encoding: &str, body: &[u8]) -> String {
        let body = BASE64.encode(body);
        format!(
            "{{\"content_type\":\"{kind}\",\"content_encoding\":\"{encoding}\",\"body_base64\":\"{body}\"}}\n"
        )
    }

    /// The pack as JSON, and each record as CBOR, plain or compact, compressed or not, one or several a message.
    fn every_form(records: &[Record<'_>]) -> Vec<String> {
        let (mut json, mut cbor, mut compact) = (Vec::new(), Vec::new(), Vec::new());
        senml::write_json(records, &mut json);
        senml::write_cbor(records, &mut cbor);
        senml::write_cbor_compact(records, &mut compact);
        let packed = zstd::stream::encode_all(&*compact, 3).unwrap();
        vec![
            String::from_utf8(json.clone()).unwrap() + "\n",
            enveloped(senml::MEDIA_TYPE_JSON, "", &json),
            enveloped(senml::MEDIA_TYPE_CBOR, "identity", &cbor),
            enveloped(senml::MEDIA_TYPE_CBOR, "zstd", &packed),
        ]
    }

    #[test]
    fn a_pack_is_the_same_in_every_form() {
        let id = [
            ("gw", Extension::Text("barn")),
            ("epoch", Extension::Text("0000000000002a")),
            ("seq", Extension::Integer(7)),
        ];
        let unsure = [("clock", Extension::Text("rtc")), ("quality", Extension::Text("uncertain: stuck"))];
        let later = [
            ("seq", Extension::Integer(20)),
            ("min", Extension::Number(0.1)),
            ("count", Extension::Integer(3)),
        ];
        let records = [
            Record {
                base_name: Some("tidegate/barn/"),
                base_time: Some(1_795_000_000.25),
                name: Some("cellar/temperature"),
                unit: Some("Cel"),
                value: Some(Written::Number(21.3)),
                extensions: &id,
                ..Record::default()
            },
            Record {
                name: Some("door/open"),
                value: Some(Written::Boolean(true)),
                time: Some(0.5),
                extensions: &unsure,
                ..Record::default()
            },
            Record {
                name: Some("cellar/temperature"),
                value: Some(Written::Number(-0.1)),
                time: Some(1.001),
                extensions: &later,
                ..Record::default()
            },
            Record {
                name: Some("pump/state"),
                value: Some(Written::Text("ön\n")),
                time: Some(2.0),
                ..Record::default()
            },
        ];
        let forms = every_form(&records);
        let all: String = forms.concat();
        let (book, tally) = book_of(all.as_bytes());
        assert_eq!((tally.lines, tally.unreadable, tally.foreign), (4, 0, 0), "{tally:?}");
        let found = &book.findings(None)[0];
        assert_eq!((found.entries, found.repeats, found.altered.len()), (4, 12, 0), "{found:?}");
        assert_eq!(found.duplicated, [(7, 8), (20, 21)]);
    }

    #[test]
    fn what_makes_no_sense_is_counted_and_named_with_its_line() {
        let bomb = zstd::stream::encode_all(std::io::repeat(b' ').take(MAX_BODY + 1), 3).unwrap();
        let text = [
            "\n",
            "[{\"n\":\"a\",\"v\":1}]\n",
            "[{\"gw\":\"barn\",\"epoch\":\"1\",\"seq\":1,\"v\":1}, 7]\n",
            "rubbish\n",
            &enveloped(senml::MEDIA_TYPE_CBOR, "gzip", b""),
            &enveloped("text/plain", "", b""),
            &enveloped(senml::MEDIA_TYPE_CBOR, "", b"\x81"),
            &enveloped(senml::MEDIA_TYPE_JSON, "zstd", &bomb),
            "{\"gw\":\"barn\",\"epoch\":\"1\",\"seq\":9007199254740992}",
        ]
        .concat();
        let (book, tally) = book_of(text.as_bytes());
        assert_eq!((tally.lines, tally.unreadable, tally.foreign), (8, 6, 2));
        for (mistake, what) in
            tally.mistakes.iter().zip(["3:", "4:", "gzip", "text/plain", "7:", "larger than 64 MB"])
        {
            assert!(mistake.contains(what), "{mistake}");
        }
        assert_eq!(book.findings(None)[0].entries, 1, "what stood before a mistake counts");
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0usize..3) {
            let _ = book_of(&bytes);
            let kind = [senml::MEDIA_TYPE_JSON, senml::MEDIA_TYPE_CBOR, "x"][kind];
            for encoding in ["", "zstd"] {
                let _ = book_of(enveloped(kind, encoding, &bytes).as_bytes());
            }
        }
    }
}
