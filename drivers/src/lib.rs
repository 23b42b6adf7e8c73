//! Wires below, chips above.
