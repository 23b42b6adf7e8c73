//! CoAP as a pure engine.
