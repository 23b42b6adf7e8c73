//! What accepts LAN clients: MQTT, CoAP, and HTTP with the page.

pub mod bind;
pub mod broker;
pub mod canary;
pub mod coap;
pub mod tls;
pub mod web;
pub mod websocket;
