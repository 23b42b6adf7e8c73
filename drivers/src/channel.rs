//! What is known of a channel before it is read: [`ChannelSpec`].

use std::borrow::Cow;

/// What a channel measures or sets, in which unit and bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelSpec {
    /// The channel's name within its device: 1 to 64 of `a-z 0-9 _ -`, beginning with a letter or digit.
    pub name: Cow<'static, str>,
    /// What a person calls it.
    pub title: Cow<'static, str>,
    /// The unit as SenML spells it (RFC 8428 §12.1, RFC 8798); empty for none.
    pub unit: Cow<'static, str>,
    /// What the sensor can measure, both ends included; a value outside is a fault.
    pub range: Option<(f64, f64)>,
    /// Digits behind the point that mean something.
    pub precision: u8,
    /// Which way it goes, and whether it only grows.
    pub kind: Kind,
    /// Which of the [`crate::Value`]s it carries.
    pub value_type: ValueType,
    /// The quantity as Home Assistant's `device_class` names it (`temperature`, `voltage`, ...), where one fits.
    pub class: Option<&'static str>,
    /// The fastest that the quantity can move, in units per second; faster is an implausible step.
    pub max_rate: Option<f64>,
    /// How many equal raw values in a row show that a noisy sensor is stuck.
    pub stuck_after: Option<u32>,
}

/// Which way a channel goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Is read, moves both ways.
    Sensor,
    /// Is read, only grows (and begins anew at a restart of what it counts).
    Counter,
    /// Is read and can be told a value.
    Actuator,
}

/// Which of the [`crate::Value`]s a channel carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    /// [`crate::Value::Number`]
    Number,
    /// [`crate::Value::Integer`]
    Integer,
    /// [`crate::Value::Boolean`]
    Boolean,
    /// [`crate::Value::Text`]
    Text,
}

impl ChannelSpec {
    /// A number that is read.
    pub fn number(name: impl Into<Cow<'static, str>>, unit: impl Into<Cow<'static, str>>) -> Self {
        let name = name.into();
        Self {
            title: title_of(&name).into(),
            name,
            unit: unit.into(),
            range: None,
            precision: 2,
            kind: Kind::Sensor,
            value_type: ValueType::Number,
            class: None,
            max_rate: None,
            stuck_after: None,
        }
    }

    /// A whole number that only grows.
    pub fn counter(name: impl Into<Cow<'static, str>>, unit: impl Into<Cow<'static, str>>) -> Self {
        Self { precision: 0, kind: Kind::Counter, value_type: ValueType::Integer, ..Self::number(name, unit) }
    }

    /// A state that is on or off.
    pub fn boolean(name: impl Into<Cow<'static, str>>) -> Self {
        Self { precision: 0, value_type: ValueType::Boolean, ..Self::number(name, "") }
    }

    /// Words.
    pub fn text(name: impl Into<Cow<'static, str>>) -> Self {
        Self { precision: 0, value_type: ValueType::Text, ..Self::number(name, "") }
    }

    /// The same channel with another title.
    #[must_use]
    pub fn titled(mut self, title: impl Into<Cow<'static, str>>) -> Self {
        self.title = title.into();
        self
    }

    /// The same channel with what its sensor can measure, both ends included.
    #[must_use]
    pub fn within(mut self, low: f64, high: f64) -> Self {
        self.range = Some((low, high));
        self
    }

    /// The same channel with so many digits behind the point.
    #[must_use]
    pub fn digits(mut self, precision: u8) -> Self {
        self.precision = precision;
        self
    }

    /// The same channel with Home Assistant's word for its quantity.
    #[must_use]
    pub fn class(mut self, class: &'static str) -> Self {
        self.class = Some(class);
        self
    }

    /// The same channel of another kind.
    #[must_use]
    pub fn kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same channel whose quantity moves at most so many units per second.
    #[must_use]
    pub fn slower_than(mut self, max_rate: f64) -> Self {
        self.max_rate = Some(max_rate);
        self
    }

    /// The same channel, whose sensor is stuck when it shows so many equal raw values in a row.
    #[must_use]
    pub fn noisy(mut self, stuck_after: u32) -> Self {
        self.stuck_after = Some(stuck_after);
        self
    }
}

/// `cpu_temp-1` is "Cpu temp 1".
fn title_of(name: &str) -> String {
    let mut title = name.replace(['_', '-'], " ");
    if let Some(first) = title.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    title
}

/// Makes a channel's name of any text: lower case, everything else than `a-z 0-9 -` becomes one `_`, at most 64
/// bytes; `None` when nothing is left.
pub(crate) fn name_from(text: &str) -> Option<String> {
    let mut name = String::new();
    for c in text.chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_lowercase() || c.is_ascii_digit() || (c == '-' && !name.is_empty()) {
            name.push(c);
        } else if !name.is_empty() && !name.ends_with('_') {
            name.push('_');
        }
        if name.len() == 64 {
            break;
        }
    }
    name.truncate(name.trim_end_matches(['_', '-']).len());
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_makes_a_valid_name_or_none() {
        for (text, name) in
            [("x86_pkg_temp", "x86_pkg_temp"), ("Core 0", "core_0"), ("+3.3V", "3_3v"), ("--a", "a")]
        {
            assert_eq!(name_from(text).as_deref(), Some(name));
        }
        assert_eq!(name_from("…/!"), None);
        assert_eq!(name_from(&"ab".repeat(100)).unwrap().len(), 64);
    }
}
