//! SenML: sensor measurements as packs of records, in JSON and in CBOR, and the registry of units.
//!
//! Covers RFC 8428 §4 (fields, resolution), §5 (JSON), §6 (CBOR) and the unit registries of RFC 8428 §12.1 and
//! RFC 8798. A pack is written record by record into a byte buffer and read into resolved records: names complete,
//! times absolute where they can be. Bytes are data: no clock, no socket.

mod cbor;
mod json;
mod record;
mod unit;

pub use cbor::{
    parse as parse_cbor, parse_below as parse_cbor_below, write as write_cbor,
    write_compact as write_cbor_compact,
};
pub use json::{parse as parse_json, parse_below as parse_json_below, write as write_json};
pub use record::{Extension, OwnedValue, ParseError, Record, Resolved, Value, is_valid_name};
pub use unit::{Unit, unit};

/// The media type of a SenML pack in JSON (RFC 8428 §12.3.1).
pub const MEDIA_TYPE_JSON: &str = "application/senml+json";
/// The media type of a SenML pack in CBOR (RFC 8428 §12.3.3).
pub const MEDIA_TYPE_CBOR: &str = "application/senml+cbor";
/// The most records that a parsed pack may hold; a longer one is refused whole.
pub const MAX_RECORDS: usize = 4096;
