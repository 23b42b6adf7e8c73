//! The unit registry: SenML units (RFC 8428 §12.1) and secondary units (RFC 8798), as far as sensors use them.

/// A unit of measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// The symbol that goes into `u`.
    pub symbol: &'static str,
    /// How a person writes it.
    pub label: &'static str,
    /// What it measures.
    pub quantity: &'static str,
}

/// Looks a symbol up; `None` for one that is not registered here.
pub fn unit(symbol: &str) -> Option<&'static Unit> {
    UNITS.iter().find(|unit| unit.symbol == symbol)
}

const fn u(symbol: &'static str, label: &'static str, quantity: &'static str) -> Unit {
    Unit { symbol, label, quantity }
}

static UNITS: &[Unit] = &[
    u("m", "m", "length"),
    u("kg", "kg", "mass"),
    u("g", "g", "mass"),
    u("s", "s", "time"),
    u("A", "A", "electric current"),
    u("K", "K", "temperature"),
    u("cd", "cd", "luminous intensity"),
    u("mol", "mol", "amount of substance"),
    u("Hz", "Hz", "frequency"),
    u("rad", "rad", "angle"),
    u("N", "N", "force"),
    u("Pa", "Pa", "pressure"),
    u("J", "J", "energy"),
    u("W", "W", "power"),
    u("C", "C", "electric charge"),
    u("V", "V", "voltage"),
    u("F", "F", "capacitance"),
    u("Ohm", "Ω", "resistance"),
    u("S", "S", "conductance"),
    u("T", "T", "magnetic flux density"),
    u("Cel", "°C", "temperature"),
    u("lm", "lm", "luminous flux"),
    u("lx", "lx", "illuminance"),
    u("Bq", "Bq", "radioactivity"),
    u("m2", "m²", "area"),
    u("m3", "m³", "volume"),
    u("m/s", "m/s", "velocity"),
    u("m/s2", "m/s²", "acceleration"),
    u("m3/s", "m³/s", "volume flow"),
    u("W/m2", "W/m²", "irradiance"),
    u("bit", "bit", "information"),
    u("bit/s", "bit/s", "data rate"),
    u("lat", "°", "latitude"),
    u("lon", "°", "longitude"),
    u("pH", "pH", "acidity"),
    u("dB", "dB", "level"),
    u("dBW", "dBW", "power level"),
    u("count", "", "count"),
    u("/", "", "ratio"),
    u("%RH", "%", "relative humidity"),
    u("%EL", "%", "remaining battery"),
    u("EL", "s", "remaining battery"),
    u("1/s", "1/s", "event rate"),
    u("1/min", "1/min", "event rate"),
    u("S/m", "S/m", "conductivity"),
    u("B", "B", "information"),
    u("VA", "VA", "apparent power"),
    u("VAs", "VAs", "apparent energy"),
    u("var", "var", "reactive power"),
    u("J/m", "J/m", "energy per distance"),
    u("kg/m3", "kg/m³", "density"),
    u("deg", "°", "angle"),
    // RFC 8798 §2: secondary units.
    u("ms", "ms", "time"),
    u("min", "min", "time"),
    u("h", "h", "time"),
    u("MHz", "MHz", "frequency"),
    u("kW", "kW", "power"),
    u("kVA", "kVA", "apparent power"),
    u("kvar", "kvar", "reactive power"),
    u("Ah", "Ah", "electric charge"),
    u("Wh", "Wh", "energy"),
    u("kWh", "kWh", "energy"),
    u("varh", "varh", "reactive energy"),
    u("mV", "mV", "voltage"),
    u("mA", "mA", "electric current"),
    u("dBm", "dBm", "power level"),
    u("ug/m3", "µg/m³", "mass concentration"),
    u("mm/h", "mm/h", "precipitation"),
    u("ppm", "ppm", "concentration"),
    u("/100", "%", "ratio"),
    u("/1000", "‰", "ratio"),
    u("hPa", "hPa", "pressure"),
    u("mm", "mm", "length"),
    u("cm", "cm", "length"),
    u("km", "km", "length"),
    u("km/h", "km/h", "velocity"),
    u("KiB", "KiB", "information"),
    u("MB", "MB", "information"),
    u("B/s", "B/s", "data rate"),
    u("l", "l", "volume"),
    u("l/s", "l/s", "volume flow"),
    u("rpm", "1/min", "rotational speed"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_symbol_stands_once() {
        for (index, unit) in UNITS.iter().enumerate() {
            assert!(UNITS[index + 1..].iter().all(|other| other.symbol != unit.symbol), "{}", unit.symbol);
        }
        assert_eq!(unit("Cel").map(|u| u.label), Some("°C"));
        assert_eq!(unit("furlong"), None);
    }
}
