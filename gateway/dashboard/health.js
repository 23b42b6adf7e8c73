// How the gateway itself is: what is wrong, which devices answer, the machine's vital signs, who listens.

import { html } from "./html.js";
import { useStore } from "./store.js";
import { DEVICE_MOODS } from "./tiles.js";
import { age, bytes, count, duration, moment, pick, plain, reading } from "./format.js";

/** The health card. */
export function Health({ store }) {
  useStore(store, "status", "channels", "tick");
  const status = store.status;
  return html`
    <section class="card health" id="health" data-testid="health" aria-labelledby="health-title">
      <h2 id="health-title">Health</h2>
      ${!status
        ? html`<p class="empty">Not known yet.</p>`
        : html`
            <${Problems} health=${status.health} />
            <${Vitals} store=${store} />
            <${Devices} store=${store} told=${status.devices ?? []} />
            <${Listeners} status=${status} />
            <${Self} store=${store} status=${status} />
          `}
    </section>
  `;
}

function Problems({ health }) {
  const problems = Array.isArray(health?.problems) ? health.problems : [];
  if (!problems.length) {
    return html`<p class=${health?.ok === false ? "problems is-bad" : "problems is-ok"}>
      ${health?.ok === false ? "Something is wrong, but the gateway does not say what." : "All is well."}
    </p>`;
  }
  return html`
    <ul class="problems is-bad">
      ${problems.slice(0, 20).map(
        (one) => html`
          <li key=${one.what}>
            <span>${plain(one.what, 240)}</span>
            ${one.since && html`<small>since ${moment(Date.parse(one.since))}</small>`}
          </li>
        `,
      )}
    </ul>
  `;
}

// The host device's most telling channels, whatever a machine happens to have.
function Vitals({ store }) {
  const hosts = [...store.devices.values()].filter((device) => device.type === "host").map((device) => device.name);
  const all = [...store.channels.values()].filter((channel) => hosts.includes(channel.device));
  const found = VITALS.flatMap(({ label, pattern }) => {
    const channel = all.find((one) => pattern.test(one.name) && one.value !== null);
    return channel ? [{ label, channel }] : [];
  });
  if (!found.length) return null;
  return html`
    <dl class="figures vitals">
      ${found.map(({ label, channel }) => {
        const shown = reading(channel);
        return html`
          <div key=${label}>
            <dt>${label}</dt>
            <dd>
              <a href=${`#/${channel.id}`}>${shown.text}${shown.unit && html`<small>${" "}${shown.unit}</small>`}</a>
            </dd>
          </div>
        `;
      })}
    </dl>
  `;
}

function Devices({ store, told }) {
  if (!told.length) return null;
  return html`
    <h3>Devices</h3>
    <ul class="rows">
      ${told.slice(0, 200).map((one) => {
        const mood = pick(DEVICE_MOODS, one.state, "none");
        const live = store.devices.get(one.name);
        const last = Number.isFinite(one.last_s) ? `, ${age(one.last_s)}` : "";
        const errors = one.errors > 0 ? `, ${count(one.errors)} ${one.errors === 1 ? "error" : "errors"}` : "";
        return html`
          <li key=${one.name}>
            <span class=${`state is-${mood}`}><i class="dot" aria-hidden="true"></i>${plain(one.name, 40)}</span>
            ${(live?.simulated ?? one.simulated) && html`<span class="sim">sim</span>`}
            <span class="rows-end">${plain(one.state, 16)}${errors}${last}</span>
          </li>
        `;
      })}
    </ul>
  `;
}

function Listeners({ status }) {
  const listeners = status.listeners ?? [];
  const { mqtt, coap } = status;
  return html`
    <h3>Served here</h3>
    <ul class="rows">
      ${listeners.map(
        (one) => html`
          <li key=${one.name + one.address}>
            <span>${plain(one.name, 24)}</span>
            <code>${plain(one.address, 60)}</code>
            <span class="rows-end">${Number.isFinite(one.clients) ? clients(one.clients) : ""}</span>
          </li>
        `,
      )}
    </ul>
    <p class="small">
      ${mqtt &&
      html`MQTT: ${count(mqtt.messages_in ?? 0)} messages in, ${count(mqtt.messages_out ?? 0)} out,
        ${" "}${mqtt.dropped ? html`<strong class="is-bad">${count(mqtt.dropped)} dropped</strong>` : "none dropped"}.`}
      ${coap && html`${" "}CoAP: ${count(coap.requests ?? 0)} requests, ${count(coap.observers ?? 0)} observers.`}
    </p>
  `;
}

function Self({ store, status }) {
  const passed = (Date.now() - store.statusAt) / 1000;
  return html`
    <h3>This gateway</h3>
    <dl class="pairs">
      <dt>Version</dt><dd>${plain(status.version, 32)}</dd>
      <dt>Running</dt><dd>${duration((status.uptime_s ?? NaN) + passed)}, since ${moment(Date.parse(status.started))}</dd>
      <dt>Memory</dt><dd>${bytes(status.memory_bytes ?? NaN)}</dd>
      <dt>Boot</dt><dd><code>${plain(status.boot, 40)}</code></dd>
      <dt>Its clock</dt><dd>${moment(store.now())}, ${clockWords(status.time?.quality)}</dd>
    </dl>
  `;
}

function clients(n) {
  return n === 1 ? "1 client" : `${count(n)} clients`;
}

function clockWords(quality) {
  const words = { ntp: "synchronised", rtc: "from its battery", file: "not synchronised", none: "not set" };
  return pick(words, quality, "not synchronised");
}

const VITALS = [
  { label: "CPU", pattern: /(cpu|soc|core|package|thermal).*temp|temp.*(cpu|soc|core)|^temperature$/ },
  { label: "Load", pattern: /^load/ },
  { label: "Memory free", pattern: /^(mem|memory|ram).*(avail|free)/ },
  { label: "Memory used", pattern: /^(mem|memory|ram).*used/ },
  { label: "Disk free", pattern: /^(disk|root|fs|state).*(free|avail)/ },
  { label: "Disk used", pattern: /^(disk|root|fs|state).*used/ },
  { label: "Undervoltage", pattern: /under.?volt/ },
  { label: "Machine up", pattern: /^uptime/ },
];
