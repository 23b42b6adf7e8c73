//! Reading the configuration again: only what differs is touched, and a configuration with mistakes changes nothing.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};

use log::{error, info, warn};

use super::{Start, filters, shown, spool_options, start_uplink, told};
use crate::config::Config;
use crate::gateway::Gateway;
use crate::sampler::Sampler;
use crate::supervise::Supervisor;
use crate::{notify, uplink};

/// Reads the configuration again and changes what is different, nothing else.
pub(super) async fn reload(
    gateway: &Arc<Gateway>,
    start: &Start,
    sampler: &mut Sampler,
    supervisor: &mut Supervisor,
) -> Result<String, String> {
    notify::reloading();
    let result = try_reload(gateway, start, sampler, supervisor).await;
    match &result {
        Ok(changes) => info!("configuration read again: {changes}"),
        Err(mistakes) => {
            error!("the configuration was not taken over, the old one stays in force");
            for line in mistakes.lines() {
                error!("{line}");
            }
        }
    }
    notify::ready();
    result
}

async fn try_reload(
    gateway: &Arc<Gateway>,
    start: &Start,
    sampler: &mut Sampler,
    supervisor: &mut Supervisor,
) -> Result<String, String> {
    let new = crate::load_config(start.config.as_deref()).map_err(|rejected| rejected.render(false))?;
    let old = gateway.config();
    gateway.users.load(&new.users, &new.mqtt.rules)?;
    let mut changes = Vec::new();
    if new.users != old.users {
        changes.push("users".to_owned());
    }
    if let (Some(identity), Some(tls)) = (&gateway.tls, &new.mqtt.tls)
        && identity.reload(tls).map_err(|faults| told(&faults))?
    {
        changes.push("TLS certificates".into());
    }
    if new.mqtt.forward != old.mqtt.forward {
        gateway.broker.set_forwarded(filters(&new.mqtt.forward)).await;
        changes.push("forwarded topics".into());
    }
    if new.home_assistant != old.home_assistant {
        gateway.live.set_discovery(new.home_assistant.discovery.then(|| new.home_assistant.prefix.clone()));
        changes.push("Home Assistant".into());
    }
    for gone in old.devices.iter().filter(|device| !new.devices.contains(device)) {
        if !new.devices.iter().any(|device| device.name == gone.name) {
            changes.push(format!("device {} removed", gone.name));
        }
        gateway.live.remove_device(&gone.name);
    }
    for added in new.devices.iter().filter(|device| !old.devices.contains(device)) {
        gateway.live.add_device(shown(added));
        changes.push(format!("device {}", added.name));
    }
    sampler.apply(new.devices.clone());
    let stopped: Vec<uplink::Handle> =
        gateway.uplinks().into_iter().filter(|handle| !new.uplinks.contains(&handle.config)).collect();
    for handle in &stopped {
        handle.stop();
        changes.push(format!("uplink {} stopped", handle.config.name));
    }
    gateway
        .uplinks
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|handle| new.uplinks.contains(&handle.config));
    // Before an uplink of the same name reads its cursor, the old one has stored it.
    for handle in &stopped {
        handle.ended().await;
    }
    if new.spool != old.spool || new.uplinks != old.uplinks {
        gateway.spool.reconfigure(spool_options(&new)).await.map_err(|error| error.to_string())?;
    }
    if new.spool != old.spool {
        changes.push("spool".into());
    }
    if new.ledger != old.ledger {
        changes.push("ledger".into());
    }
    let running = gateway.uplinks();
    for added in new.uplinks.iter().filter(|uplink| !running.iter().any(|handle| handle.config == **uplink)) {
        start_uplink(gateway, added.clone(), supervisor);
        changes.push(format!("uplink {}", added.name));
    }
    let mut kept = new.clone();
    let needs_restart = new.gateway != old.gateway
        || new.mqtt.listen != old.mqtt.listen
        || new.mqtt.max_connections != old.mqtt.max_connections
        || new.mqtt.limits != old.mqtt.limits
        || tls_addresses(&new) != tls_addresses(&old)
        || new.http.listen != old.http.listen
        || new.coap != old.coap;
    if needs_restart {
        warn!("the gateway's name, addresses and MQTT limits change with the next start only");
        changes.push("name, addresses or limits (with the next start)".into());
        kept.gateway = old.gateway.clone();
        kept.mqtt.listen.clone_from(&old.mqtt.listen);
        kept.mqtt.max_connections = old.mqtt.max_connections;
        kept.mqtt.limits = old.mqtt.limits.clone();
        if tls_addresses(&new) != tls_addresses(&old) {
            kept.mqtt.tls.clone_from(&old.mqtt.tls);
        }
        kept.http.listen.clone_from(&old.http.listen);
        kept.coap = old.coap.clone();
    }
    *gateway.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(kept);
    Ok(if changes.is_empty() { "nothing changed".into() } else { changes.join(", ") })
}

/// Where TLS listens; `None` where it does not.
fn tls_addresses(config: &Config) -> Option<(&[SocketAddr], &[SocketAddr])> {
    config.mqtt.tls.as_ref().map(|tls| (&tls.listen[..], &tls.websocket_listen[..]))
}
