//! I2C: the settings that every chip on such a bus has ([`I2cAt`]), the handle that chip drivers hold
//! ([`I2cHandle`]), and what carries the bytes ([`Transport`]).
//!
//! The handle repairs what adapters cannot do: adjacent operations of one direction are merged, and a transaction with
//! more than one read is split behind each read, because the Raspberry Pi's controller (i2c-bcm2835) takes one read
//! and only as the last. Between the parts stands a STOP, which the `embedded-hal` contract does not foresee and no
//! chip of ours minds.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use embedded_hal::i2c::{ErrorKind, ErrorType, I2c, NoAcknowledgeSource, Operation};
use serde::Deserialize;

use crate::bus::Backend;
use crate::error::DeviceError;
use crate::setup::{BusKey, Wires};
use crate::sim::SimFaults;

pub use linux::LinuxI2c;
#[cfg(feature = "rppal")]
pub(in crate::bus) use linux::fault;

mod linux;

/// Where a chip is: bus, address, and how the bus is reached.
#[derive(Debug, Clone, PartialEq)]
pub struct I2cAt {
    bus: BusName,
    address: u8,
    backend: Backend,
    faults: SimFaults,
}

/// `i2c-1` (or `/dev/i2c-1`), or `sim` (and `sim-2`, ... where one simulated bus has too few addresses).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BusName(String);

/// A 7-bit address that a device may have: 0x08 to 0x77.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "i64")]
pub struct I2cAddress(u8);

/// Carries one transaction. `operations` never has two neighbours of one direction and at most one read, as the last.
pub trait Transport {
    /// Does it, between one START and one STOP.
    fn transfer(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault>;

    /// Lets `ns` nanoseconds pass for the chips.
    fn delay_ns(&mut self, ns: u32) {
        std::thread::sleep(std::time::Duration::from_nanos(u64::from(ns)));
    }
}

/// What went wrong on the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum I2cFault {
    /// Nobody acknowledged.
    Nack,
    /// Another master won.
    Arbitration,
    /// The controller gave up waiting.
    Timeout,
    /// A kernel driver holds this address.
    Busy,
    /// The adapter cannot do such a transaction.
    Unsupported,
    /// The adapter is gone.
    Gone,
    /// Any other error number of the kernel.
    Other(i32),
}

/// What a chip driver holds: the bus of its thread. Cloned, it is the same bus.
#[derive(Clone)]
pub struct I2cHandle {
    transport: Rc<RefCell<dyn Transport>>,
    // Some chip crates swallow the bus's error; the adapter asks here what it was.
    last_fault: Rc<Cell<Option<I2cFault>>>,
}

impl I2cAt {
    /// Joins the settings of a chip that answers at one of `addresses`, the first being the default.
    pub fn new(
        bus: BusName,
        address: Option<I2cAddress>,
        backend: Backend,
        faults: Option<SimFaults>,
        addresses: &[u8],
    ) -> Result<Self, String> {
        let address = address.map_or(addresses[0], |address| address.0);
        if !addresses.contains(&address) {
            let known: Vec<_> = addresses.iter().map(|address| format!("{address:#04x}")).collect();
            return Err(format!("this chip has no address {address:#04x}, only {}", known.join(" or ")));
        }
        if backend == Backend::Rppal && !cfg!(feature = "rppal") {
            return Err("this program was built without the feature `rppal`: leave `backend` out".to_owned());
        }
        let at = Self { bus, address, backend, faults: faults.clone().unwrap_or_default() };
        if faults.is_some() && !at.is_simulated() {
            return Err("`sim` is for `bus = \"sim\"` only".to_owned());
        }
        Ok(at)
    }

    /// The 7-bit address.
    pub fn address(&self) -> u8 {
        self.address
    }

    /// The thread's key.
    pub fn bus(&self) -> BusKey {
        if self.is_simulated() { BusKey::Sim } else { BusKey::I2c(self.bus.0.clone()) }
    }

    /// What only one chip can have.
    pub fn occupies(&self) -> String {
        format!("{} address {:#04x}", self.bus.0, self.address)
    }

    /// On the simulated bus.
    pub fn is_simulated(&self) -> bool {
        self.bus.0.starts_with("sim")
    }

    /// The adapter's node, if it does not exist.
    pub fn missing(&self) -> Option<String> {
        let path = self.path();
        (!self.is_simulated() && !std::path::Path::new(&path).exists()).then_some(path)
    }

    /// Opens the bus, or shares it with the thread's other devices. On the simulated bus `chip` is plugged in at our
    /// address.
    pub fn open(
        &self,
        wires: &Wires,
        chip: impl FnOnce(u64) -> Box<dyn crate::sim::Chip>,
    ) -> Result<I2cHandle, DeviceError> {
        if self.is_simulated() {
            let bus = wires.sim(&self.bus.0);
            bus.borrow_mut().plug(self.address, chip(self.faults.seed), self.faults.clone());
            return Ok(I2cHandle::shared(bus));
        }
        wires.i2c(&self.bus.0, || match self.backend {
            Backend::Kernel => LinuxI2c::open(&self.path()).map(I2cHandle::new),
            #[cfg(feature = "rppal")]
            Backend::Rppal => crate::bus::rppal::open_i2c(&self.bus.0).map(I2cHandle::new),
            #[cfg(not(feature = "rppal"))]
            Backend::Rppal => Err(DeviceError::Config("built without the feature `rppal`".to_owned())),
        })
    }

    fn path(&self) -> String {
        format!("/dev/{}", self.bus.0)
    }
}

impl TryFrom<String> for BusName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let name = text.strip_prefix("/dev/").unwrap_or(&text);
        let number = name.strip_prefix("i2c-").or_else(|| name.strip_prefix("sim-"));
        let is_numbered =
            number.is_some_and(|n| !n.is_empty() && n.len() <= 5 && n.bytes().all(|b| b.is_ascii_digit()));
        if is_numbered || name == "sim" {
            Ok(Self(name.to_owned()))
        } else {
            Err(format!("`{text}` is no I2C bus: write `i2c-1` for /dev/i2c-1, or `sim`"))
        }
    }
}

impl TryFrom<i64> for I2cAddress {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        match u8::try_from(number) {
            Ok(address @ 0x08..=0x77) => Ok(Self(address)),
            _ => Err(format!("{number:#x} is no I2C address: 0x08 to 0x77 are")),
        }
    }
}

impl I2cHandle {
    /// A bus of its own.
    pub fn new(transport: impl Transport + 'static) -> Self {
        Self::shared(Rc::new(RefCell::new(transport)))
    }

    /// A bus that others see too.
    pub fn shared(transport: Rc<RefCell<dyn Transport>>) -> Self {
        Self { transport, last_fault: Rc::default() }
    }

    /// The fault of the last transaction, once, for chip crates that do not pass it on.
    pub fn take_fault(&self) -> Option<I2cFault> {
        self.last_fault.take()
    }
}

impl ErrorType for I2cHandle {
    type Error = I2cFault;
}

impl I2c for I2cHandle {
    fn transaction(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
        let mut transport = self.transport.borrow_mut();
        let result = run_parts(operations, |part| transport.transfer(address, part));
        self.last_fault.set(result.err());
        result
    }
}

impl embedded_hal::delay::DelayNs for I2cHandle {
    fn delay_ns(&mut self, ns: u32) {
        self.transport.borrow_mut().delay_ns(ns);
    }

    fn delay_us(&mut self, us: u32) {
        self.delay_ns(us.saturating_mul(1000));
    }

    fn delay_ms(&mut self, ms: u32) {
        self.delay_ns(ms.saturating_mul(1_000_000));
    }
}

impl embedded_hal::i2c::Error for I2cFault {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Nack => ErrorKind::NoAcknowledge(NoAcknowledgeSource::Unknown),
            Self::Arbitration => ErrorKind::ArbitrationLoss,
            Self::Timeout | Self::Busy | Self::Unsupported | Self::Gone | Self::Other(_) => ErrorKind::Other,
        }
    }
}

impl From<I2cFault> for DeviceError {
    fn from(fault: I2cFault) -> Self {
        match fault {
            I2cFault::Nack => Self::Nack,
            I2cFault::Arbitration => Self::Arbitration,
            I2cFault::Timeout => Self::Timeout,
            I2cFault::Busy => Self::Busy("the I2C address".to_owned()),
            I2cFault::Unsupported => Self::Config("the I2C adapter cannot do this transaction".to_owned()),
            I2cFault::Gone => Self::NotPresent("the I2C adapter".to_owned()),
            I2cFault::Other(errno) => Self::Io {
                what: "I2C transfer".to_owned(),
                message: std::io::Error::from_raw_os_error(errno).to_string(),
            },
        }
    }
}

/// Merges neighbours of one direction, splits behind each read, and runs the parts in order.
fn run_parts(
    operations: &mut [Operation<'_>],
    mut run: impl FnMut(&mut [Operation<'_>]) -> Result<(), I2cFault>,
) -> Result<(), I2cFault> {
    // What chip drivers do all the time needs no buffers: `[W]`, `[R]` and `[W, R]`.
    match operations {
        [] => return Ok(()),
        [_] | [Operation::Write(_), Operation::Read(_)] => return run(operations),
        _ => {}
    }
    let mut rest = operations;
    while !rest.is_empty() {
        let writes = rest.iter().take_while(|op| matches!(op, Operation::Write(_))).count();
        let reads = rest[writes..].iter().take_while(|op| matches!(op, Operation::Read(_))).count();
        let (part, after) = rest.split_at_mut(writes + reads);
        rest = after;
        let mut written = Vec::new();
        let mut wanted = 0;
        for operation in part.iter() {
            match operation {
                Operation::Write(bytes) => written.extend_from_slice(bytes),
                Operation::Read(buffer) => wanted += buffer.len(),
            }
        }
        let mut read = vec![0; wanted];
        match (writes, reads) {
            (_, 0) => run(&mut [Operation::Write(&written)])?,
            (0, _) => run(&mut [Operation::Read(&mut read)])?,
            _ => run(&mut [Operation::Write(&written), Operation::Read(&mut read)])?,
        }
        let mut read = read.as_slice();
        for operation in part {
            if let Operation::Read(buffer) = operation {
                let (bytes, after) = read.split_at(buffer.len());
                buffer.copy_from_slice(bytes);
                read = after;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes down what reaches the wire; reads count up from 1.
    #[derive(Default)]
    struct Tape(Rc<RefCell<Vec<String>>>);

    impl Transport for Tape {
        fn transfer(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
            let mut words = vec![format!("{address:02x}:")];
            let mut next = 0;
            for operation in operations {
                match operation {
                    Operation::Write(bytes) => words.push(format!("W{bytes:?}")),
                    Operation::Read(buffer) => {
                        words.push(format!("R{}", buffer.len()));
                        buffer.fill_with(|| {
                            next += 1;
                            next
                        });
                    }
                }
            }
            self.0.borrow_mut().push(words.join(" "));
            Ok(())
        }
    }

    #[test]
    fn neighbours_are_merged_and_reads_are_split() {
        let tape = Tape::default();
        let lines = tape.0.clone();
        let mut handle = I2cHandle::new(tape);
        let (mut a, mut b, mut c) = ([0; 2], [0; 1], [0; 2]);
        handle
            .transaction(
                0x40,
                &mut [
                    Operation::Write(&[1]),
                    Operation::Write(&[2, 3]),
                    Operation::Read(&mut a),
                    Operation::Read(&mut b),
                    Operation::Write(&[4]),
                    Operation::Read(&mut c),
                ],
            )
            .unwrap();
        assert_eq!(lines.take(), ["40: W[1, 2, 3] R3", "40: W[4] R2"]);
        assert_eq!((a, b, c), ([1, 2], [3], [1, 2]));
        handle.transaction(0x40, &mut [Operation::Read(&mut b), Operation::Write(&[9])]).unwrap();
        assert_eq!(lines.take(), ["40: R1", "40: W[9]"]);
    }

    #[test]
    fn a_bus_is_named_as_the_kernel_names_it() {
        for good in ["i2c-1", "/dev/i2c-22", "sim", "sim-7"] {
            assert!(BusName::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "1", "i2c-", "i2c-x", "/dev/../etc/passwd", "i2c-1/..", "spi-0", "simon"] {
            assert!(BusName::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }
}
