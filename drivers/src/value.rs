//! What a channel can hold: [`Value`].

use std::fmt;

/// A value in its channel's unit.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// A measurement.
    Number(f64),
    /// A count, exact beyond what a float can hold.
    Integer(i64),
    /// A contact, a relay, a flag.
    Boolean(bool),
    /// Words; at most [`Value::TEXT_MAX`] bytes by the devices of this crate.
    Text(Box<str>),
}

impl Value {
    /// The longest text that a device of this crate makes, in bytes.
    pub const TEXT_MAX: usize = 1024;

    /// The value as a number: booleans are 0 and 1, text is none.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::Integer(integer) => Some(*integer as f64),
            Self::Boolean(boolean) => Some(f64::from(u8::from(*boolean))),
            Self::Text(_) => None,
        }
    }

    /// The value as a boolean, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Boolean(boolean) => Some(*boolean),
            _ => None,
        }
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<i64> for Value {
    fn from(integer: i64) -> Self {
        Self::Integer(integer)
    }
}

impl From<bool> for Value {
    fn from(boolean: bool) -> Self {
        Self::Boolean(boolean)
    }
}

impl From<&str> for Value {
    /// Cuts what is longer than [`Value::TEXT_MAX`] at a character's border.
    fn from(text: &str) -> Self {
        let mut end = text.len().min(Self::TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self::Text(text[..end].into())
    }
}

/// Numbers in their shortest exact form, booleans as `true` and `false`, text as it is.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Integer(integer) => integer.fmt(f),
            Self::Boolean(boolean) => boolean.fmt(f),
            Self::Text(text) => f.write_str(text),
        }
    }
}

/// The `f64` that a person would write for an `f32` of a sensor: 21.53, not 21.530000686645508. Four digits behind the
/// point are more than any of them measures.
pub(crate) fn decimal(number: f32) -> f64 {
    (f64::from(number) * 1e4).round() / 1e4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_cut_at_a_characters_border() {
        let Value::Text(text) = Value::from("ä".repeat(600).as_str()) else { panic!("text expected") };
        assert_eq!(text.len(), 1024);
        let Value::Text(text) = Value::from(format!("x{}", "ä".repeat(600)).as_str()) else {
            panic!("text expected")
        };
        assert_eq!(text.len(), 1023);
    }
}
