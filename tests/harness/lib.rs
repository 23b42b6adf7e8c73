//! Peers, faults and the gateway under test.
