//! MQTT as pure engines.
