//! `/dev/i2c-N` (Linux `Documentation/i2c/dev-interface.rst`): one descriptor per bus, `I2C_RDWR` with a repeated
//! start, and `SMBus` block transfers for adapters that know no plain I2C (i2c-stub, i801, USB bridges).

use std::fs::File;
use std::os::fd::AsRawFd;

use embedded_hal::i2c::Operation;

use super::{I2cFault, Transport};
use crate::error::DeviceError;

/// One adapter of the kernel, opened once.
#[derive(Debug)]
pub struct LinuxI2c {
    file: File,
    has_plain_i2c: bool,
}

impl LinuxI2c {
    /// Opens `/dev/i2c-N` and asks what the adapter can do. A transfer that hangs is given up after 100 ms, and the
    /// kernel retries nothing by itself: retrying is decided above.
    pub fn open(path: &str) -> Result<Self, DeviceError> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|error| DeviceError::from_io(path, &error))?;
        let mut functions: libc::c_ulong = 0;
        ioctl(&file, I2C_FUNCS, (&raw mut functions).cast())
            .map_err(|_| DeviceError::Config(format!("{path} is no I2C adapter")))?;
        let has_plain_i2c = functions & I2C_FUNC_I2C != 0;
        if !has_plain_i2c && functions & I2C_FUNC_SMBUS_I2C_BLOCKS != I2C_FUNC_SMBUS_I2C_BLOCKS {
            return Err(DeviceError::Config(format!("{path} knows neither I2C nor SMBus block transfers")));
        }
        // Both are hints; an adapter that refuses them still works.
        let _ = ioctl(&file, I2C_TIMEOUT, std::ptr::without_provenance_mut(TIMEOUT_10MS));
        let _ = ioctl(&file, I2C_RETRIES, std::ptr::null_mut());
        Ok(Self { file, has_plain_i2c })
    }

    fn read_write(&self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
        self.claim(address)?;
        let mut messages = [Message::EMPTY; 2];
        for (message, operation) in messages.iter_mut().zip(operations.iter_mut()) {
            let (flags, bytes, length) = match operation {
                Operation::Write(bytes) => (0, bytes.as_ptr().cast_mut(), bytes.len()),
                Operation::Read(buffer) => (I2C_M_RD, buffer.as_mut_ptr(), buffer.len()),
            };
            let length = u16::try_from(length).ok().filter(|length| *length <= LONGEST_MESSAGE);
            *message = Message {
                address: u16::from(address),
                flags,
                length: length.ok_or(I2cFault::Unsupported)?,
                bytes,
            };
        }
        let mut all = Messages { list: messages.as_mut_ptr(), count: operations.len() as u32 };
        ioctl(&self.file, I2C_RDWR, (&raw mut all).cast()).map_err(fault)
    }

    /// `I2C_RDWR` itself does not look whether a kernel driver holds the address; this call does (`EBUSY`).
    fn claim(&self, address: u8) -> Result<(), I2cFault> {
        ioctl(&self.file, I2C_SLAVE, std::ptr::without_provenance_mut(usize::from(address))).map_err(fault)
    }

    /// `[W1]`, `[W1..33]`, `[R1]` and `[W1, R..32]` are what `SMBus` can say; chips use little else.
    fn smbus(&self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
        self.claim(address)?;
        let mut data = SmbusData { block: [0; 34] };
        match operations {
            [Operation::Write([command])] => self.smbus_call(SMBUS_WRITE, *command, SMBUS_BYTE, None),
            [Operation::Write([command, bytes @ ..])] if !bytes.is_empty() && bytes.len() <= 32 => {
                data.block[0] = bytes.len() as u8;
                data.block[1..=bytes.len()].copy_from_slice(bytes);
                self.smbus_call(SMBUS_WRITE, *command, SMBUS_I2C_BLOCK, Some(&mut data))
            }
            [Operation::Read([byte])] => {
                self.smbus_call(SMBUS_READ, 0, SMBUS_BYTE, Some(&mut data))?;
                *byte = data.block[0];
                Ok(())
            }
            [Operation::Write([command]), Operation::Read(buffer)] if (1..=32).contains(&buffer.len()) => {
                data.block[0] = buffer.len() as u8;
                self.smbus_call(SMBUS_READ, *command, SMBUS_I2C_BLOCK, Some(&mut data))?;
                if usize::from(data.block[0]) < buffer.len() {
                    return Err(I2cFault::Other(libc::EPROTO));
                }
                buffer.copy_from_slice(&data.block[1..=buffer.len()]);
                Ok(())
            }
            _ => Err(I2cFault::Unsupported),
        }
    }

    fn smbus_call(
        &self,
        direction: u8,
        command: u8,
        size: u32,
        data: Option<&mut SmbusData>,
    ) -> Result<(), I2cFault> {
        let data = data.map_or(std::ptr::null_mut(), std::ptr::from_mut);
        let mut call = SmbusCall { direction, command, size, data };
        ioctl(&self.file, I2C_SMBUS, (&raw mut call).cast()).map_err(|errno| match errno {
            // i2c-stub says so of an address where no chip is.
            libc::ENODEV => I2cFault::Nack,
            errno => fault(errno),
        })
    }
}

impl Transport for LinuxI2c {
    fn transfer(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
        if operations.len() > 2 {
            return Err(I2cFault::Unsupported);
        }
        if self.has_plain_i2c {
            self.read_write(address, operations)
        } else {
            self.smbus(address, operations)
        }
    }
}

/// What the adapters of the Raspberry Pi (i2c-bcm2835, i2c-designware on the Pi 5) and others say, in our words.
pub(in crate::bus) fn fault(errno: i32) -> I2cFault {
    match errno {
        libc::EREMOTEIO | libc::ENXIO => I2cFault::Nack,
        libc::EAGAIN => I2cFault::Arbitration,
        libc::ETIMEDOUT => I2cFault::Timeout,
        libc::EBUSY => I2cFault::Busy,
        libc::EOPNOTSUPP | libc::EINVAL => I2cFault::Unsupported,
        libc::ENODEV | libc::ENOENT => I2cFault::Gone,
        errno => I2cFault::Other(errno),
    }
}

#[expect(unsafe_code, reason = "no kept crate does I2C_RDWR without a descriptor per address")]
fn ioctl(file: &File, request: libc::c_ulong, argument: *mut libc::c_void) -> Result<(), i32> {
    // SAFETY: every caller passes what <linux/i2c-dev.h> names for `request`: a number, or a pointer to a struct (and
    // through it to buffers) that outlives the call and is not aliased during it.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)) } else { Ok(()) }
}

/// `struct i2c_msg` of <linux/i2c.h>.
#[repr(C)]
#[derive(Clone, Copy)]
struct Message {
    address: u16,
    flags: u16,
    length: u16,
    bytes: *mut u8,
}

impl Message {
    const EMPTY: Self = Self { address: 0, flags: 0, length: 0, bytes: std::ptr::null_mut() };
}

/// `struct i2c_rdwr_ioctl_data` of <linux/i2c-dev.h>.
#[repr(C)]
struct Messages {
    list: *mut Message,
    count: u32,
}

/// `struct i2c_smbus_ioctl_data` of <linux/i2c-dev.h>.
#[repr(C)]
struct SmbusCall {
    direction: u8,
    command: u8,
    size: u32,
    data: *mut SmbusData,
}

/// `union i2c_smbus_data` of <linux/i2c.h>: byte, word, and a block with its length first.
#[repr(C, align(2))]
struct SmbusData {
    block: [u8; 34],
}

// <linux/i2c-dev.h> and <linux/i2c.h>
const I2C_RETRIES: libc::c_ulong = 0x0701;
const I2C_TIMEOUT: libc::c_ulong = 0x0702;
const I2C_SLAVE: libc::c_ulong = 0x0703;
const I2C_FUNCS: libc::c_ulong = 0x0705;
const I2C_RDWR: libc::c_ulong = 0x0707;
const I2C_SMBUS: libc::c_ulong = 0x0720;
const I2C_M_RD: u16 = 0x0001;
const I2C_FUNC_I2C: libc::c_ulong = 0x0000_0001;
const I2C_FUNC_SMBUS_I2C_BLOCKS: libc::c_ulong = 0x0C00_0000;
const SMBUS_WRITE: u8 = 0;
const SMBUS_READ: u8 = 1;
const SMBUS_BYTE: u32 = 1;
const SMBUS_I2C_BLOCK: u32 = 8;

/// `I2C_TIMEOUT` counts tens of milliseconds.
const TIMEOUT_10MS: usize = 10;

/// The kernel refuses more.
const LONGEST_MESSAGE: u16 = 8192;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unplugged_chip_is_a_nack_on_every_controller() {
        for errno in [libc::EREMOTEIO, libc::ENXIO] {
            assert_eq!(fault(errno), I2cFault::Nack);
        }
        assert_eq!(fault(libc::EBUSY), I2cFault::Busy);
        assert_eq!(fault(libc::ETIMEDOUT), I2cFault::Timeout);
    }

    #[test]
    fn the_structs_have_the_kernels_layout() {
        let pointer = size_of::<*const u8>();
        assert_eq!(size_of::<Message>(), pointer + 8);
        assert_eq!(size_of::<Messages>(), 2 * pointer);
        assert_eq!(size_of::<SmbusCall>(), 8 + pointer);
        assert_eq!(std::mem::offset_of!(SmbusCall, size), 4);
        assert_eq!(size_of::<SmbusData>(), 34);
    }

    #[test]
    fn what_is_no_adapter_is_refused() {
        assert!(matches!(LinuxI2c::open("/dev/null"), Err(DeviceError::Config(_))));
        assert!(matches!(LinuxI2c::open("/dev/i2c-99999"), Err(DeviceError::NotPresent(_))));
    }
}
