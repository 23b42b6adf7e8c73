//! Which chip answers at an address, by what its documentation says that only it answers.
//!
//! A register chip is first told which register (one byte, the register pointer), and only with pointers that every
//! chip usual at that address takes for one. None is ever sent to 0x20-0x27 and 0x38-0x3F (port expanders switch their
//! outputs), 0x23 and 0x5C (light sensors take commands), 0x50 and 0x51 (memories), 0x68-0x6F (an MCP3421 takes any byte
//! for its configuration); 0x60 is not even read (a converter and a safe live there).
//!
//! A command chip is asked with its documented read command, and only where a plain read is refused, which no register
//! chip does.
//!
//! Two chips have no pointer, and tell themselves by nothing, where the common ones do. A TCA9548A at 0x76 or 0x77 opens
//! channels for a moment and is given back what it had. A PCF8591 from 0x48 on takes the pointer that finds an ADS1115,
//! LM75 or TMP117 for its control byte: an analog output that it drives is then off.

use embedded_hal::delay::DelayNs;
use embedded_hal::i2c::{I2c, Operation};

use super::Confidence::{self, Candidate, Certain};
use crate::bus::i2c::{I2cFault, I2cHandle};

/// A chip that was recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Recognised {
    /// Maker's name or names.
    pub what: &'static str,
    /// The device type that reads it, if one is meant to.
    pub device_type: Option<&'static str>,
    pub confidence: Confidence,
}

/// What came of asking at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Nobody acknowledged.
    Absent,
    /// Somebody did and is none of those in the tables.
    Unknown,
    Known(Recognised),
}

/// Addresses that may be asked: not the reserved ones, not the `SMBus` alert response, not 0x60.
pub(super) fn addresses() -> impl Iterator<Item = u8> {
    (0x08..=0x77).filter(|address| !matches!(address, 0x0C | 0x60))
}

/// Asks at `address`. A fault is one of the bus; that nobody acknowledges is none.
pub(super) fn ask(bus: &mut I2cHandle, address: u8) -> Result<Answer, I2cFault> {
    let Some(first) = plain_read(bus, address)? else {
        let known = by_command(bus, address)?;
        return Ok(known.map_or(Answer::Absent, Answer::Known));
    };
    // Twice, because a bit may have been read wrong.
    for _ in 0..2 {
        if let Some(known) = by_register(bus, address, first)? {
            return Ok(Answer::Known(known));
        }
    }
    // A command chip acknowledges a plain read while a result of somebody's waits in it, which is now taken.
    let known = if plain_read(bus, address)?.is_none() { by_command(bus, address)? } else { None };
    Ok(known.map_or(Answer::Unknown, Answer::Known))
}

/// What is often found at an address where nothing tells itself, in words for a person.
pub(super) fn usual_at(address: u8) -> &'static str {
    match address {
        0x0D => "QMC5883L",
        0x18..=0x1F => "MCP9808, LIS3DH",
        0x23 => "BH1750, MCP23017, PCF8574",
        0x20..=0x27 => "MCP23017, PCF8574, LCD",
        0x29 => "VL53L1X, TSL2561",
        0x38 => "AHT10, AHT20, VEML6070, PCF8574A",
        0x39 => "APDS9960, TSL2561, PCF8574A",
        0x3C | 0x3D => "OLED display, PCF8574A",
        0x3A..=0x3F => "PCF8574A",
        0x40 => "HTU21D, SI7021, PCA9685, INA219",
        0x41..=0x47 => "INA219, PCA9685",
        0x48..=0x4F => "ADS1115, LM75, TMP102, PCF8591",
        0x50..=0x57 => "EEPROM",
        0x5A => "MLX90614",
        0x5C => "BH1750, AM2320",
        0x61..=0x67 => "MCP4725",
        0x68 | 0x69 => "DS3231, DS1307, MPU-6050, MCP3421",
        0x70..=0x75 => "TCA9548A, HT16K33",
        0x76 | 0x77 => "MS5611, TCA9548A",
        _ => "",
    }
}

/// A chip with registers that say which it is. The first that fits counts.
struct RegisterChip {
    what: &'static str,
    device_type: Option<&'static str>,
    confidence: Confidence,
    /// First and last address.
    at: &'static [(u8, u8)],
    /// All of them have to be so.
    signs: &'static [Sign],
}

/// What is read from a register on, and which of its bits matter.
struct Sign {
    register: u8,
    bytes: &'static [u8],
    mask: &'static [u8],
}

/// A chip that answers a command with words, each with its checksum.
struct CommandChip {
    what: &'static str,
    device_type: Option<&'static str>,
    at: &'static [u8],
    command: &'static [u8],
    wait_ms: u32,
    words: usize,
    fits: fn(&[u16]) -> bool,
}

/// A byte of whatever the chip shows. One refusal may be a disturbance, two are an answer.
fn plain_read(bus: &mut I2cHandle, address: u8) -> Result<Option<u8>, I2cFault> {
    let mut byte = [0];
    Ok(twice(|| bus.read(address, &mut byte))?.then_some(byte[0]))
}

fn by_register(bus: &mut I2cHandle, address: u8, first: u8) -> Result<Option<Recognised>, I2cFault> {
    for chip in REGISTER_CHIPS {
        if !chip.at.iter().any(|(from, to)| (*from..=*to).contains(&address)) {
            continue;
        }
        let mut fits = true;
        for sign in chip.signs {
            let mut buffer = [0; MOST_BYTES];
            let read = &mut buffer[..sign.bytes.len()];
            let has_answered = twice(|| bus.write_read(address, &[sign.register], read))?;
            if has_answered && address >= 0x70 && is_multiplexer(bus, address, sign.register, read[0])? {
                // Its channels are as they were before.
                twice(|| bus.write(address, &[first]))?;
                return Ok(Some(MULTIPLEXER));
            }
            let is_so =
                read.iter().zip(sign.mask).map(|(byte, mask)| byte & mask).eq(sign.bytes.iter().copied());
            if !has_answered || !is_so {
                fits = false;
                break;
            }
        }
        if fits {
            let RegisterChip { what, device_type, confidence, .. } = *chip;
            return Ok(Some(Recognised { what, device_type, confidence }));
        }
    }
    Ok(None)
}

/// A TCA9548A has one register and no pointer: what was meant for one opened channels, and is read back. A zero proves
/// nothing, most registers hold one.
fn is_multiplexer(bus: &mut I2cHandle, address: u8, pointer: u8, read: u8) -> Result<bool, I2cFault> {
    Ok(pointer != 0 && read == pointer && plain_read(bus, address)? == Some(pointer))
}

fn by_command(bus: &mut I2cHandle, address: u8) -> Result<Option<Recognised>, I2cFault> {
    for chip in COMMAND_CHIPS.iter().filter(|chip| chip.at.contains(&address)) {
        for _ in 0..2 {
            let mut buffer = [0; MOST_BYTES];
            let read = &mut buffer[..3 * chip.words];
            let result = if chip.wait_ms == 0 {
                bus.transaction(address, &mut [Operation::Write(chip.command), Operation::Read(read)])
            } else {
                bus.write(address, chip.command).and_then(|()| {
                    bus.delay_ms(chip.wait_ms);
                    bus.read(address, read)
                })
            };
            match result {
                Err(I2cFault::Nack) => continue,
                Err(fault) => return Err(fault),
                Ok(()) => {}
            }
            let mut words = [0; MOST_BYTES / 3];
            let are_right = read.chunks_exact(3).zip(&mut words).all(|(bytes, word)| {
                *word = u16::from_be_bytes([bytes[0], bytes[1]]);
                checksum(&bytes[..2]) == bytes[2]
            });
            if are_right && (chip.fits)(&words[..chip.words]) {
                let CommandChip { what, device_type, .. } = *chip;
                return Ok(Some(Recognised { what, device_type, confidence: Certain }));
            }
        }
    }
    Ok(None)
}

/// Whether it was acknowledged, at the second try at last.
fn twice(mut transfer: impl FnMut() -> Result<(), I2cFault>) -> Result<bool, I2cFault> {
    for _ in 0..2 {
        match transfer() {
            Ok(()) => return Ok(true),
            Err(I2cFault::Nack) => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(false)
}

/// CRC-8 of Sensirion's chips: polynomial 0x31, first value 0xFF (SHT3x-DIS §4.12).
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0xFF, |crc, byte| {
        (0..8).fold(crc ^ byte, |crc, _| if crc & 0x80 == 0 { crc << 1 } else { crc << 1 ^ 0x31 })
    })
}

const fn byte(register: u8, bytes: &'static [u8]) -> Sign {
    Sign { register, bytes, mask: &[0xFF] }
}

const fn word(register: u8, bytes: &'static [u8]) -> Sign {
    Sign { register, bytes, mask: &[0xFF, 0xFF] }
}

const fn chip(
    what: &'static str,
    confidence: Confidence,
    at: &'static [(u8, u8)],
    signs: &'static [Sign],
) -> RegisterChip {
    RegisterChip { what, device_type: None, confidence, at, signs }
}

const MULTIPLEXER: Recognised =
    Recognised { what: "TCA9548A I2C multiplexer", device_type: None, confidence: Candidate };

const BOSCH: &[(u8, u8)] = &[(0x76, 0x77)];

// Identity registers as the drivers of Linux 6.12 and the datasheets have them. What rests on one byte that another
// chip could hold too, or on a value after reset, is a candidate.
#[rustfmt::skip] // A table.
static REGISTER_CHIPS: &[RegisterChip] = &[
    RegisterChip { device_type: Some("bme280"), ..chip("Bosch BME280", Certain, BOSCH, &[byte(0xD0, &[0x60])]) },
    chip("Bosch BMP280", Certain, BOSCH, &[byte(0xD0, &[0x58])]),
    chip("Bosch BME688", Certain, BOSCH, &[byte(0xD0, &[0x61]), byte(0xF0, &[0x01])]),
    chip("Bosch BME680", Certain, BOSCH, &[byte(0xD0, &[0x61])]),
    chip("Bosch BMP085 or BMP180", Certain, &[(0x77, 0x77)], &[byte(0xD0, &[0x55])]),
    chip("Bosch BMP388", Certain, BOSCH, &[byte(0x00, &[0x50])]),
    chip("Bosch BMP390", Certain, BOSCH, &[byte(0x00, &[0x60])]),
    chip("Infineon DPS310", Certain, BOSCH, &[byte(0x0D, &[0x10])]),

    chip("Microchip MCP9808", Certain, &[(0x18, 0x1F)], &[
        word(0x06, &[0x00, 0x54]), Sign { register: 0x07, bytes: &[0x04, 0], mask: &[0xFF, 0] },
    ]),
    chip("ST LIS3DH or LIS2DH", Certain, &[(0x18, 0x19)], &[byte(0x0F, &[0x33])]),
    chip("Honeywell HMC5883L", Certain, &[(0x1E, 0x1E)], &[
        Sign { register: 0x0A, bytes: b"H43", mask: &[0xFF; 3] },
    ]),
    chip("Analog Devices ADXL345", Certain, &[(0x1D, 0x1D), (0x53, 0x53)], &[byte(0x00, &[0xE5])]),
    chip("ScioSense ENS160", Certain, &[(0x52, 0x53)], &[word(0x00, &[0x60, 0x01])]),
    chip("Maxim MAX30102", Candidate, &[(0x57, 0x57)], &[byte(0xFF, &[0x15])]),

    // The order matters: what stands behind the TSL2591 would clear an interrupt of it.
    chip("ams TSL2591", Certain, &[(0x29, 0x29)], &[byte(0xB2, &[0x50])]),
    chip("ams TCS34725", Certain, &[(0x29, 0x29)], &[byte(0x92, &[0x44])]),
    chip("ams TCS34727", Certain, &[(0x29, 0x29)], &[byte(0x92, &[0x4D])]),
    chip("Bosch BNO055", Certain, &[(0x29, 0x29)], &[byte(0x00, &[0xA0])]),
    chip("ams TSL2561", Candidate, &[(0x29, 0x29)], &[Sign { register: 0x8A, bytes: &[0x50], mask: &[0xF0] }]),
    chip("ST VL53L0X", Certain, &[(0x29, 0x29)], &[byte(0xC0, &[0xEE])]),
    chip("Maxim MAX17048", Candidate, &[(0x36, 0x36)], &[
        Sign { register: 0x08, bytes: &[0x00, 0x10], mask: &[0xFF, 0xF0] },
    ]),

    // At 0x40 no pointer 0xFE: it resets an HTU21D or SI7021. From 0x48 none with bit 6: it turns on a PCF8591's output.
    chip("TI INA226", Certain, &[(0x40, 0x47)], &[word(0xFF, &[0x22, 0x60])]),
    chip("TI INA260", Certain, &[(0x40, 0x47)], &[word(0xFF, &[0x22, 0x70])]),
    chip("TI HDC1080", Certain, &[(0x40, 0x40)], &[word(0xFF, &[0x10, 0x50])]),
    chip("TI INA228", Certain, &[(0x40, 0x47)], &[
        word(0x3E, &[0x54, 0x49]), Sign { register: 0x3F, bytes: &[0x22, 0x80], mask: &[0xFF, 0xF0] },
    ]),
    chip("TI OPT3001", Certain, &[(0x44, 0x47)], &[word(0x7E, &[0x54, 0x49]), word(0x7F, &[0x30, 0x01])]),
    chip("TI TMP117", Certain, &[(0x48, 0x4B)], &[word(0x0F, &[0x01, 0x17])]),
    chip("TI TMP116", Certain, &[(0x48, 0x4B)], &[word(0x0F, &[0x11, 0x16])]),
    chip("TI ADS1015 or ADS1115", Candidate, &[(0x48, 0x4B)], &[word(0x01, &[0x85, 0x83])]),
    chip("LM75, TMP102 or one like them", Candidate, &[(0x48, 0x4F)], &[
        word(0x02, &[0x4B, 0x00]), word(0x03, &[0x50, 0x00]),
    ]),
    chip("TI INA219", Candidate, &[(0x40, 0x4F)], &[word(0x00, &[0x39, 0x9F])]),
    chip("Vishay VEML6030 or VEML7700", Candidate, &[(0x10, 0x10), (0x48, 0x48)], &[byte(0x07, &[0x81])]),

    chip("ams CCS811", Certain, &[(0x5A, 0x5B)], &[byte(0x20, &[0x81])]),
    chip("ST HTS221", Certain, &[(0x5F, 0x5F)], &[byte(0x0F, &[0xBC])]),
];

// All by Sensirion; the commands are those that read a status, a serial number or a version.
#[rustfmt::skip] // A table.
static COMMAND_CHIPS: &[CommandChip] = &[
    CommandChip { what: "Sensirion SHT30, SHT31 or SHT35", device_type: Some("sht3x"), at: &[0x44, 0x45],
        command: &[0xF3, 0x2D], wait_ms: 0, words: 1, fits: |_| true },
    CommandChip { what: "Sensirion SHT4x", device_type: Some("sht4x"), at: &[0x44, 0x45, 0x46],
        command: &[0x89], wait_ms: 10, words: 2, fits: |_| true },
    CommandChip { what: "Sensirion SGP30", device_type: None, at: &[0x58],
        command: &[0x20, 0x2F], wait_ms: 10, words: 1, fits: |words| words[0] & 0xF000 == 0 },
    CommandChip { what: "Sensirion SGP40 or SGP41", device_type: None, at: &[0x59],
        command: &[0x36, 0x82], wait_ms: 2, words: 3, fits: |_| true },
    CommandChip { what: "Sensirion SCD30", device_type: None, at: &[0x61],
        command: &[0xD1, 0x00], wait_ms: 4, words: 1, fits: |_| true },
    CommandChip { what: "Sensirion SCD40 or SCD41", device_type: None, at: &[0x62],
        command: &[0x36, 0x82], wait_ms: 2, words: 3, fits: |_| true },
    CommandChip { what: "Sensirion SPS30", device_type: None, at: &[0x69],
        command: &[0xD0, 0x02], wait_ms: 2, words: 4, fits: |words| words == [0x3030, 0x3038, 0x3030, 0x3030] },
    CommandChip { what: "Sensirion SHTC3", device_type: None, at: &[0x70],
        command: &[0xEF, 0xC8], wait_ms: 1, words: 1, fits: |words| words[0] & 0x083F == 0x0807 },
];

const MOST_BYTES: usize = 12;

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::bus::i2c::Transport;
    use crate::sim::{Chip, SimBus, SimFaults, bme280, sht3x};

    /// Writes down what is written to which address on its way to a simulated bus.
    struct Tape(SimBus, Rc<RefCell<Written>>);

    type Written = Vec<(u8, Vec<u8>)>;

    impl Transport for Tape {
        fn transfer(&mut self, address: u8, operations: &mut [Operation<'_>]) -> Result<(), I2cFault> {
            for operation in operations.iter() {
                if let Operation::Write(bytes) = operation {
                    self.1.borrow_mut().push((address, bytes.to_vec()));
                }
            }
            self.0.transfer(address, operations)
        }

        fn delay_ns(&mut self, ns: u32) {
            self.0.delay_ns(ns);
        }
    }

    /// Registers of a width, or without a pointer the one register of a multiplexer.
    struct Registers {
        values: Vec<(u8, Vec<u8>)>,
        pointer: Option<u8>,
        control: u8,
    }

    impl Registers {
        fn boxed(values: &[(u8, &[u8])]) -> Box<Self> {
            let values = values.iter().map(|(register, bytes)| (*register, bytes.to_vec())).collect();
            Box::new(Self { values, pointer: Some(0), control: 0 })
        }
    }

    impl Chip for Registers {
        fn write(&mut self, bytes: &[u8], _now_ns: u64) -> bool {
            match &mut self.pointer {
                Some(pointer) => *pointer = bytes[0],
                None => self.control = bytes[0],
            }
            true
        }

        fn read(&mut self, buffer: &mut [u8], _now_ns: u64) -> bool {
            buffer.fill(self.control);
            let value = self.values.iter().find(|(register, _)| Some(*register) == self.pointer);
            for (byte, value) in buffer.iter_mut().zip(value.map_or(&[][..], |(_, bytes)| bytes)) {
                *byte = *value;
            }
            true
        }

        fn power_on(&mut self, _now_ns: u64) {}
    }

    /// Answers at every address, and what was written.
    fn scan(chips: Vec<(u8, Box<dyn Chip>, SimFaults)>) -> (Vec<(u8, Answer)>, Written) {
        let mut bus = SimBus::with_clock(|| 1_000_000_000);
        for (address, chip, faults) in chips {
            bus.plug(address, chip, faults);
        }
        let written = Rc::new(RefCell::new(Vec::new()));
        let mut handle = I2cHandle::new(Tape(bus, written.clone()));
        let answers = addresses().map(|address| (address, ask(&mut handle, address).unwrap()));
        let answers = answers.filter(|(_, answer)| *answer != Answer::Absent).collect();
        drop(handle);
        (answers, written.take())
    }

    fn what(answer: Answer) -> &'static str {
        match answer {
            Answer::Absent => "absent",
            Answer::Unknown => "unknown",
            Answer::Known(known) => known.what,
        }
    }

    /// One chip with these registers.
    fn alone(address: u8, values: &[(u8, &[u8])]) -> &'static str {
        let (answers, _) = scan(vec![(address, Registers::boxed(values), SimFaults::default())]);
        assert_eq!(answers.len(), 1);
        what(answers[0].1)
    }

    fn sensors(faults: &SimFaults) -> Vec<(u8, Box<dyn Chip>, SimFaults)> {
        vec![
            (0x44, Box::new(sht3x::Sht3x::new(1)), faults.clone()),
            (0x45, Box::new(sht3x::Sht3x::new(2)), faults.clone()),
            (0x76, Box::new(bme280::Bme280::new(1)), faults.clone()),
            (0x77, Box::new(bme280::Bme280::new(2)), faults.clone()),
        ]
    }

    #[test]
    fn the_sensors_we_read_are_found_and_the_rest_is_quiet() {
        let faults = [
            SimFaults::default(),
            SimFaults { nack_every: 2, ..SimFaults::default() },
            SimFaults { nack_every: 3, ..SimFaults::default() },
            SimFaults { flip_every: 3, ..SimFaults::default() },
        ];
        for faults in &faults {
            let (answers, _) = scan(sensors(faults));
            let found: Vec<_> = answers.iter().map(|(address, answer)| (*address, what(*answer))).collect();
            let sht3x = "Sensirion SHT30, SHT31 or SHT35";
            let bme280 = "Bosch BME280";
            assert_eq!(found, [(0x44, sht3x), (0x45, sht3x), (0x76, bme280), (0x77, bme280)], "{faults:?}");
        }
    }

    #[test]
    fn a_register_chip_is_never_written_more_than_a_pointer_and_some_addresses_nothing() {
        // Everywhere a chip that answers and is nothing known: the most that a scan can write.
        let everywhere = (0x00..=0x7F)
            .map(|address| (address, Registers::boxed(&[]) as Box<dyn Chip>, SimFaults::default()));
        let (answers, written) = scan(everywhere.collect());
        assert_eq!(answers.len(), addresses().count());
        assert!(answers.iter().all(|(_, answer)| *answer == Answer::Unknown));
        assert!(!written.is_empty());
        for (address, bytes) in written {
            assert_eq!(bytes.len(), 1, "{address:#04x}: {bytes:02x?}");
            let is_forbidden = matches!(
                address,
                ..0x08 | 0x0C | 0x20..=0x27 | 0x38..=0x3F | 0x50 | 0x51 | 0x54..=0x56 | 0x5C | 0x60 | 0x68..=0x6F | 0x70..=0x75 | 0x78..
            );
            assert!(!is_forbidden, "{address:#04x}: {bytes:02x?}");
            assert!(address != 0x40 || bytes != [0xFE], "resets an HTU21D");
            assert!(!(0x48..=0x4F).contains(&address) || bytes[0] & 0x40 == 0, "a PCF8591's output");
        }
    }

    #[test]
    fn an_empty_bus_is_written_nothing_but_read_commands() {
        let (answers, written) = scan(Vec::new());
        assert_eq!(answers, []);
        for (address, bytes) in written {
            assert!(
                COMMAND_CHIPS.iter().any(|chip| chip.at.contains(&address) && chip.command == bytes),
                "{address:#04x}: {bytes:02x?}"
            );
        }
    }

    #[test]
    fn chips_are_told_apart_by_their_registers() {
        for (address, values, name) in [
            (0x76, &[(0xD0, &[0x58][..])][..], "Bosch BMP280"),
            (0x76, &[(0xD0, &[0x61])], "Bosch BME680"),
            (0x77, &[(0xD0, &[0x61]), (0xF0, &[1])], "Bosch BME688"),
            (0x77, &[(0x0D, &[0x10])], "Infineon DPS310"),
            (0x76, &[(0xD0, &[0x55])], "unknown"),
            (0x18, &[(0x06, &[0x00, 0x54]), (0x07, &[0x04, 0x03])], "Microchip MCP9808"),
            (0x1E, &[(0x0A, b"H43")], "Honeywell HMC5883L"),
            (0x40, &[(0x00, &[0x39, 0x9F])], "TI INA219"),
            (0x40, &[(0xFF, &[0x22, 0x60])], "TI INA226"),
            (0x44, &[(0x7E, &[0x54, 0x49]), (0x7F, &[0x30, 0x01])], "TI OPT3001"),
            (0x48, &[(0x01, &[0x85, 0x83])], "TI ADS1015 or ADS1115"),
            (0x49, &[(0x02, &[0x4B, 0x00]), (0x03, &[0x50, 0x00])], "LM75, TMP102 or one like them"),
            (0x49, &[(0x02, &[0x4B, 0x00]), (0x03, &[0x50, 0x01])], "unknown"),
            (0x48, &[(0x0F, &[0x01, 0x17])], "TI TMP117"),
            (0x29, &[(0x8A, &[0x5A])], "ams TSL2561"),
            (0x68, &[(0x75, &[0x71])], "unknown"),
        ] {
            assert_eq!(alone(address, values), name, "{address:#04x}");
        }
    }

    #[test]
    fn a_multiplexer_keeps_its_channels() {
        let mux = Registers { values: Vec::new(), pointer: None, control: 0x05 };
        let (answers, written) = scan(vec![(0x77, Box::new(mux), SimFaults::default())]);
        assert_eq!(answers, [(0x77, Answer::Known(MULTIPLEXER))]);
        assert_eq!(written.last(), Some(&(0x77, vec![0x05])));
    }

    #[test]
    fn a_dead_bus_is_a_fault_and_not_an_empty_one() {
        let mut bus = SimBus::new();
        bus.set_dead(true);
        assert_eq!(ask(&mut I2cHandle::new(bus), 0x76), Err(I2cFault::Timeout));
    }

    #[test]
    fn every_row_of_the_tables_makes_sense() {
        for chip in REGISTER_CHIPS {
            for sign in chip.signs {
                assert_eq!(sign.bytes.len(), sign.mask.len(), "{}", chip.what);
                assert!(sign.bytes.len() <= MOST_BYTES);
                assert!(
                    sign.bytes.iter().zip(sign.mask).all(|(byte, mask)| byte & !mask == 0),
                    "{}",
                    chip.what
                );
            }
        }
        assert!(COMMAND_CHIPS.iter().all(|chip| 3 * chip.words <= MOST_BYTES));
    }
}
