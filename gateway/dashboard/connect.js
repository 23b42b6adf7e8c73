// How to reach the same readings with other tools: commands to copy, filled in for this gateway.

import { html, useState } from "./html.js";
import { useStore } from "./store.js";
import { plain } from "./format.js";

/** The section at the page's end. */
export function Connect({ store }) {
  useStore(store, "status", "channels");
  const gateway = store.gateway || "+";
  const listeners = store.status?.listeners ?? [];
  const host = location.hostname.replace(/^\[|\]$/g, "") || "127.0.0.1";
  const hostInUri = host.includes(":") ? `[${host}]` : host;
  const mqttPort = port(listeners, /^mqtt$/, "1883");
  const coapPort = port(listeners, /^coap$/, "5683");
  const coap = `coap://${hostInUri}${coapPort === "5683" ? "" : `:${coapPort}`}`;
  const mqtt = `-h ${host}${mqttPort === "1883" ? "" : ` -p ${mqttPort}`}`;
  const channels = [...store.channels.values()].filter((channel) => channel.isListed);
  const sensor = channels.find((channel) => channel.kind !== "actuator" && channel.type !== "text");
  const actuator = channels.find((channel) => channel.kind === "actuator");
  const value = actuator?.type === "number" ? "1" : "true";
  const isHere = (one) => /^(127\.|\[?::1|localhost)/.test(String(one.address));
  const isLoopback = listeners.length > 0 && listeners.every(isHere);
  const at = (path) => new URL(path, location.href.split("#")[0]).href;
  return html`
    <section class="connect" id="connect" aria-labelledby="connect-title">
      <h2 id="connect-title">Connect</h2>
      <p>The tiles above are an ordinary MQTT client. Whatever speaks MQTT, CoAP or HTTP reads the same values.</p>
      ${isLoopback &&
      html`<p class="small">
        For now the gateway answers only on the machine it runs on. Opening it to the network is a line per listener in
        the configuration, together with credentials.
      </p>`}
      <div class="commands">
        <${Copy} label="All readings, as they come" text=${`mosquitto_sub ${mqtt} -v -t 'tidegate/${gateway}/#'`} />
        <${Copy} label="What there is, over CoAP" text=${`coap-client -m get ${coap}/.well-known/core`} />
        ${sensor &&
        html`<${Copy} label="Observe one for a minute" text=${`coap-client -s 60 -m get ${coap}/${sensor.id}`} />`}
        ${actuator &&
        html`<${Copy}
          label="Switch something"
          text=${`mosquitto_pub ${mqtt} -t tidegate/${gateway}/${actuator.id}/set -m ${value}`}
        />`}
        <${Copy} label="MQTT in a browser" text=${at("./mqtt").replace(/^http/, "ws")} />
        <${Copy} label="State as JSON" text=${`curl ${at("./api/v1/status")}`} />
      </div>
    </section>
  `;
}

/** A labelled piece of text with a button that copies it. */
export function Copy({ label, text }) {
  const [said, setSaid] = useState("");
  const copy = async () => {
    setSaid((await copied(text)) ? "Copied" : "Select it and copy by hand");
    setTimeout(() => setSaid(""), 2500);
  };
  return html`
    <div class="copy">
      <span class="copy-label">${label}</span>
      <code tabindex="0">${plain(text, 400)}</code>
      <button type="button" onClick=${copy} aria-label=${`Copy: ${label}`}>${said || "Copy"}</button>
      <span class="visually-hidden" role="status">${said}</span>
    </div>
  `;
}

// Over plain HTTP a browser has no clipboard for us; selecting and copying still works there.
async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    area.className = "visually-hidden";
    // Inside an open dialog everything outside it is inert.
    const place = document.querySelector("dialog[open]") ?? document.body;
    place.append(area);
    area.select();
    const isDone = document.execCommand("copy");
    area.remove();
    return isDone;
  }
}

function port(listeners, pattern, usual) {
  const address = listeners.find((one) => pattern.test(String(one.name)))?.address;
  return /:(\d{1,5})$/.exec(String(address))?.[1] ?? usual;
}
