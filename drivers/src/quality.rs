//! Whether a value can be trusted, and if not, why: [`Quality`].

/// Whether a value can be trusted, and if not, why (the three grades of OPC UA and Sparkplug).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Quality {
    /// Nothing speaks against it.
    Good,
    /// There is a value, and a reason to look at it twice.
    Uncertain(UncertainReason),
    /// There is no usable value.
    Bad(BadReason),
}

/// Why a value that was read should be looked at twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum UncertainReason {
    /// Outside the range that the user set for the channel.
    Range = 1,
    /// Further from the last value than the quantity can move in that time.
    Step = 2,
    /// The very same value for longer than a noisy sensor can show it.
    Stuck = 3,
    /// An older value, repeated.
    Stale = 4,
    /// Edges were lost between the kernel and us: a counter is too low.
    LostEdges = 5,
}

/// Why there is no usable value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BadReason {
    /// The device does not answer.
    NoAnswer = 1,
    /// The answer's checksum is wrong.
    Crc = 2,
    /// Another chip answers at this address.
    WrongChip = 3,
    /// Outside what the sensor can measure.
    Range = 4,
    /// The bytes make no sense.
    Parse = 5,
    /// The device, its line or its bus is in another's hands, or may not be opened.
    NoAccess = 6,
    /// Nothing came for too long.
    Stale = 7,
    /// The device reports a fault of its own.
    Fault = 8,
}

impl Quality {
    /// The grade alone: `good`, `uncertain` or `bad`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Uncertain(_) => "uncertain",
            Self::Bad(_) => "bad",
        }
    }

    /// Why it is not good, in two or three words.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Good => None,
            Self::Uncertain(reason) => Some(reason.as_str()),
            Self::Bad(reason) => Some(reason.as_str()),
        }
    }

    /// Nothing speaks against the value.
    pub fn is_good(self) -> bool {
        self == Self::Good
    }

    /// One number for the store: the grade in the upper two bits (0, 1, 2), the reason in the lower six. Codes are
    /// kept for ever.
    pub fn to_code(self) -> u8 {
        match self {
            Self::Good => 0,
            Self::Uncertain(reason) => 0x40 | reason as u8,
            Self::Bad(reason) => 0x80 | reason as u8,
        }
    }

    /// The inverse of [`Quality::to_code`]; `None` for a code that is not ours.
    pub fn from_code(code: u8) -> Option<Self> {
        if code == 0 {
            return Some(Self::Good);
        }
        let uncertain = UncertainReason::ALL.into_iter().map(Self::Uncertain);
        let bad = BadReason::ALL.into_iter().map(Self::Bad);
        uncertain.chain(bad).find(|quality| quality.to_code() == code)
    }
}

impl UncertainReason {
    const ALL: [Self; 5] = [Self::Range, Self::Step, Self::Stuck, Self::Stale, Self::LostEdges];

    /// The reason in two or three words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Range => "outside set range",
            Self::Step => "implausible step",
            Self::Stuck => "stuck",
            Self::Stale => "stale",
            Self::LostEdges => "edges lost",
        }
    }
}

impl BadReason {
    const ALL: [Self; 8] = [
        Self::NoAnswer,
        Self::Crc,
        Self::WrongChip,
        Self::Range,
        Self::Parse,
        Self::NoAccess,
        Self::Stale,
        Self::Fault,
    ];

    /// The reason in two or three words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoAnswer => "not answering",
            Self::Crc => "checksum wrong",
            Self::WrongChip => "wrong chip",
            Self::Range => "out of range",
            Self::Parse => "unreadable",
            Self::NoAccess => "no access",
            Self::Stale => "stale",
            Self::Fault => "device fault",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_that_is_ours_comes_back_and_no_other() {
        let known = (0..=u8::MAX).filter_map(|code| Quality::from_code(code).map(|quality| (code, quality)));
        let known: Vec<_> = known.collect();
        assert_eq!(known.len(), 1 + UncertainReason::ALL.len() + BadReason::ALL.len());
        assert!(known.iter().all(|(code, quality)| quality.to_code() == *code));
    }
}
