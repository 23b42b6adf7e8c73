//! SenML packs.
