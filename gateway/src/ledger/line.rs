//! The canonical line of an entry, the same whatever the message that carried it was encoded as, and its digests.
//!
//! `<seq> <name> <time> <value>`, then ` <field>=<content>` for each of [`Line`]'s further fields that the record has,
//! ended by a line feed. `gateway/LEDGER.md` has the format for people.

use std::fmt::Write as _;

use ring::digest::{Context, SHA256, digest};

/// What the line of one entry is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Line<'a> {
    /// The place in the log.
    pub seq: u64,
    /// The SenML name without `tidegate/<gateway>/`; of a LAN client's message its topic.
    pub name: &'a str,
    /// Milliseconds since 1970; `None` while the clock was not known to be right.
    pub time_ms: Option<i64>,
    /// The value.
    pub value: Value<'a>,
    /// `u`: the unit, `None` where there is none.
    pub unit: Option<&'a str>,
    /// `quality`, where it is not good.
    pub quality: Option<&'a str>,
    /// `from`: the first place that a gap names.
    pub from: Option<u64>,
    /// `to`: the last place that a gap names.
    pub to: Option<u64>,
    /// `count`: how many entries a gap or an aggregate stands for.
    pub count: Option<u64>,
    /// `raised`: whether an alarm begins.
    pub raised: Option<bool>,
    /// `offset`: what a clock record adds, in milliseconds.
    pub offset: Option<i64>,
    /// `error`: how far off that may be, in milliseconds.
    pub error: Option<i64>,
    /// `min`: the smallest value that an aggregate stands for.
    pub min: Option<f64>,
    /// `max`: the largest.
    pub max: Option<f64>,
}

/// The value in a line.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Value<'a> {
    /// There is none, or a number that is not finite.
    #[default]
    None,
    /// `v`.
    Number(f64),
    /// `vb`.
    Boolean(bool),
    /// `vs`.
    Text(&'a str),
    /// `vd`, and the payload of every LAN client's message.
    Bytes(&'a [u8]),
}

/// The first 16 bytes of a line's SHA-256.
pub type LineDigest = [u8; 16];

impl Line<'_> {
    /// Writes the line, line feed included.
    pub fn write(&self, out: &mut String) {
        // Writing into a `String` cannot fail.
        let _ = write!(out, "{} ", self.seq);
        escape(self.name, out);
        out.push(' ');
        match self.time_ms {
            Some(ms) => drop(write!(out, "{ms}")),
            None => out.push('-'),
        }
        out.push(' ');
        match self.value {
            Value::Number(number) if number.is_finite() => drop(write!(out, "n:{}", bits(number))),
            Value::None | Value::Number(_) => out.push('-'),
            Value::Boolean(truth) => out.push(if truth { 't' } else { 'f' }),
            Value::Text(text) => {
                out.push_str("s:");
                escape(text, out);
            }
            Value::Bytes(bytes) => {
                out.push_str("d:");
                push_hex(digest(&SHA256, bytes).as_ref(), out);
            }
        }
        for (key, text) in [("u", self.unit), ("quality", self.quality)] {
            if let Some(text) = text {
                let _ = write!(out, " {key}=");
                escape(text, out);
            }
        }
        for (key, number) in [("from", self.from), ("to", self.to), ("count", self.count)] {
            if let Some(number) = number {
                let _ = write!(out, " {key}={number}");
            }
        }
        if let Some(raised) = self.raised {
            out.push_str(if raised { " raised=t" } else { " raised=f" });
        }
        for (key, number) in [("offset", self.offset), ("error", self.error)] {
            if let Some(number) = number {
                let _ = write!(out, " {key}={number}");
            }
        }
        for (key, number) in [("min", self.min), ("max", self.max)] {
            if let Some(number) = number {
                // On the wire a field of ours is finite.
                let _ = write!(out, " {key}={}", bits(if number.is_finite() { number } else { 0.0 }));
            }
        }
        out.push('\n');
    }

    /// Digests the line, with `scratch` as room to write it into.
    pub fn digest(&self, scratch: &mut String) -> LineDigest {
        scratch.clear();
        self.write(scratch);
        let full = digest(&SHA256, scratch.as_bytes());
        std::array::from_fn(|index| full.as_ref()[index])
    }
}

/// Gathers the digests of the lines of one chunk.
#[derive(Clone)]
pub struct Chunk {
    context: Context,
    /// Lines gathered.
    pub lines: u64,
}

impl Chunk {
    /// An empty one.
    pub fn new() -> Self {
        Self { context: Context::new(&SHA256), lines: 0 }
    }

    /// The next line, in the order of the places.
    pub fn add(&mut self, line: &LineDigest) {
        self.context.update(line);
        self.lines += 1;
    }

    /// The first 8 bytes of the SHA-256 over the lines' digests, as 16 hex digits.
    pub fn finish(self) -> String {
        hex(&self.context.finish().as_ref()[..8])
    }
}

/// SHA-256 as hex digits.
pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

/// Lower-case hex digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(2 * bytes.len());
    push_hex(bytes, &mut out);
    out
}

/// The inverse of [`hex`], in either case; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let pairs = text.as_bytes().chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return None;
    }
    pairs.map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect()
}

fn push_hex(bytes: &[u8], out: &mut String) {
    for byte in bytes {
        let _ = write!(out, "{byte:02x}");
    }
}

/// The big-endian bits of a number; there is one zero, as not every JSON reader knows another.
fn bits(number: f64) -> String {
    format!("{:016x}", if number == 0.0 { 0 } else { number.to_bits() })
}

/// A line has one line feed, and a space ends a field.
fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            ' ' => out.push_str("\\s"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(line: Line<'_>) -> String {
        let mut out = String::new();
        line.write(&mut out);
        out
    }

    #[test]
    fn lines_are_what_the_description_says() {
        let base = Line {
            seq: 101,
            name: "cellar/temperature",
            time_ms: Some(1_795_000_000_250),
            ..Line::default()
        };
        assert_eq!(
            line(Line { value: Value::Number(21.5), unit: Some("Cel"), ..base }),
            "101 cellar/temperature 1795000000250 n:4035800000000000 u=Cel\n"
        );
        assert_eq!(
            line(Line { time_ms: None, value: Value::Boolean(true), ..base }),
            "101 cellar/temperature - t\n"
        );
        assert_eq!(
            line(Line { name: "a b\\c", value: Value::Text("one\ntwo \\ three"), ..base }),
            "101 a\\sb\\\\c 1795000000250 s:one\\ntwo\\s\\\\\\sthree\n"
        );
        assert_eq!(
            line(Line { value: Value::Number(-0.0), ..base }),
            line(Line { value: Value::Number(0.0), ..base })
        );
        assert_eq!(
            line(Line { value: Value::Bytes(b"x"), ..base }),
            "101 cellar/temperature 1795000000250 d:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\n"
        );
        assert_eq!(
            line(Line {
                name: "gap",
                value: Value::Text("quota"),
                from: Some(3),
                to: Some(9),
                count: Some(7),
                time_ms: None,
                ..base
            }),
            "101 gap - s:quota from=3 to=9 count=7\n"
        );
    }

    #[test]
    fn the_worked_example_of_the_description_holds() {
        let mut chunk = Chunk::new();
        for seq in [1, 2] {
            let line = Line { seq, name: "pump/state", value: Value::Boolean(false), ..Line::default() };
            chunk.add(&line.digest(&mut String::new()));
        }
        assert_eq!(chunk.finish(), "2a9c2105e2e2133f");
    }

    #[test]
    fn hex_reads_back_and_nothing_else_does() {
        assert_eq!(unhex(&hex(&[0, 0xff, 0x1a])), Some(vec![0, 0xff, 0x1a]));
        for bad in ["0", "0g", "é0", "+1"] {
            assert_eq!(unhex(bad), None, "{bad}");
        }
    }
}
