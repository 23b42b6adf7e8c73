//! What stands in a datagram (RFC 7252 §3, §5.10; RFC 7959 §2.2), read in place and written into a caller's buffer.

mod block;
mod code;
mod message;
mod option;
mod writer;

pub use block::Block;
pub use code::Code;
pub use message::{Kind, Malformed, Message, OptionIter, Token};
pub use option::{ETag, Format, is_critical, number};
pub(crate) use option::{definition, uint};
pub use writer::Writer;
