// The overview: a card per device, a tile per channel, the important ones first.

import { html, useEffect, useRef, useState } from "./html.js";
import { RECENT_MS, isOverdue, useStore } from "./store.js";
import { getJson } from "./api.js";
import { age, pick, plain, reading } from "./format.js";
import { Actuator } from "./actuator.js";
import { Spark } from "./spark.js";

/** All devices with their tiles, and the box that filters them. */
export function Readings({ store }) {
  useStore(store, "channels");
  const [wanted, setWanted] = useState("");
  const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
  const groups = grouped(store, words);
  const total = store.channels.size;
  const shown = groups.reduce((sum, group) => sum + group.channels.length, 0);
  return html`
    <section class="readings" id="readings" aria-labelledby="readings-title">
      <div class="section-head">
        <h2 id="readings-title">Readings</h2>
        <label class="search">
          <span class="visually-hidden">Filter devices and channels</span>
          <input
            type="search"
            placeholder=${total ? `Filter ${total} channels` : "Filter"}
            value=${wanted}
            onInput=${(event) => setWanted(event.target.value)}
          />
        </label>
      </div>
      <p class="visually-hidden" role="status">${words.length ? `${shown} of ${total} channels match` : ""}</p>
      ${!total && html`<${Nothing} store=${store} />`}
      ${total > 0 && !shown && html`<p class="empty">Nothing here is called “${plain(wanted, 40)}”.</p>`}
      <div class="devices">
        ${groups.map(
          ({ name, channels }) =>
            html`<${Device}
              key=${name}
              store=${store}
              name=${name}
              channels=${channels}
              isFiltered=${words.length > 0}
            />`,
        )}
      </div>
    </section>
  `;
}

function Nothing({ store }) {
  useStore(store, "status", "link");
  const isAsked = store.status !== null;
  return html`
    <p class="empty">
      ${isAsked
        ? "No channel yet. As soon as a device answers, its readings appear here by themselves."
        : "Waiting for the gateway…"}
    </p>
  `;
}

function Device({ store, name, channels, isFiltered }) {
  useStore(store, `device:${name}`);
  const [isOpen, setOpen] = useState(false);
  const device = store.devices.get(name) ?? { name, title: name, state: "unknown", detail: "", type: "", bus: "" };
  const isFolded = !isOpen && !isFiltered && channels.length > FOLD_ABOVE;
  const shown = isFolded ? channels.slice(0, innerWidth > 640 ? FOLD_SHOWS : FOLD_SHOWS / 2) : channels;
  const isSimulated = device.simulated ?? channels.some((channel) => channel.simulated);
  const hasTitle = device.title && device.title !== name;
  const span = Math.min(shown.length, 4);
  return html`
    <article class=${`device span-${span}`} aria-label=${device.title || name} data-device=${name}>
      <header class="device-head">
        <h3>${hasTitle ? device.title : name}</h3>
        ${isSimulated && html`<span class="sim" title="These values are simulated">sim</span>`}
        <span class="device-id">${[hasTitle && name, device.type, device.bus].filter(Boolean).join(" · ")}</span>
        <${DeviceState} device=${device} />
      </header>
      ${device.detail && device.state !== "online" && html`<p class="device-detail">${device.detail}</p>`}
      <div class="tiles">
        ${shown.map((channel) => html`<${Tile} key=${channel.id} store=${store} channel=${channel} />`)}
      </div>
      ${!isFiltered &&
      channels.length > FOLD_ABOVE &&
      html`
        <button type="button" class="fold" aria-expanded=${String(isOpen)} onClick=${() => setOpen(!isOpen)}>
          ${isOpen ? "Show the important ones" : `Show all ${channels.length}`}
        </button>
      `}
    </article>
  `;
}

function DeviceState({ device }) {
  const mood = pick(DEVICE_MOODS, device.state, "none");
  return html`
    <span class=${`state is-${mood}`}><i class="dot" aria-hidden="true"></i>${device.state || "unknown"}</span>
  `;
}

function Tile({ store, channel }) {
  useStore(store, `channel:${channel.id}`, "link");
  const box = useRef(null);
  useEffect(() => seedWhenSeen(store, channel, box.current), [channel]);
  const shown = reading(channel);
  const trouble = channel.quality === "good" ? "" : channel.quality;
  const mood = trouble.startsWith("bad") ? "is-bad" : trouble ? "is-uncertain" : "";
  const isText = typeof channel.value === "string";
  const isState = typeof channel.value === "boolean";
  const kinds = [mood, isText && "is-text", isState && "is-state", channel.kind === "actuator" && "is-actuator"];
  return html`
    <div
      ref=${box}
      class=${["tile", ...kinds].filter(Boolean).join(" ")}
      data-testid="tile"
      data-channel=${channel.id}
    >
      <a class="tile-title" href=${`#/${channel.id}`} aria-haspopup="dialog">${channel.title}</a>
      <p class="tile-value" data-testid="value" data-value=${rawValue(channel.value)}>
        <bdi class="number">${shown.text}</bdi>${shown.unit && html`<span class="unit">${" "}${shown.unit}</span>`}
      </p>
      <p class="tile-foot">
        <${Age} store=${store} channel=${channel} />
        ${trouble && html`<span class="quality" title=${trouble}>${trouble}</span>`}
      </p>
      ${channel.kind === "actuator" && html`<${Actuator} store=${store} channel=${channel} />`}
      ${!isText && html`<${Spark} channel=${channel} nowMs=${store.now()} />`}
    </div>
  `;
}

function Age({ store, channel }) {
  useStore(store, "tick");
  if (channel.value === null) return html`<span class="age">no reading yet</span>`;
  const nowMs = store.now();
  const said = Number.isFinite(channel.at) ? age((nowMs - channel.at) / 1000) : "kept from before";
  return html`<span class=${isOverdue(channel, nowMs) ? "age is-overdue" : "age"}>${said}</span>`;
}

// A tile that comes into view asks once for the minutes before the page was opened; two questions at a time.
function seedWhenSeen(store, channel, element) {
  if (channel.isSeeded || !element || channel.type === "text") return undefined;
  const seen = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    seen.disconnect();
    if (channel.isSeeded || channel.type === "text") return;
    channel.isSeeded = true;
    seeds.push({ store, channel });
    if (seeding < 2) seedNext();
  });
  seen.observe(element);
  return () => seen.disconnect();
}

async function seedNext() {
  const next = seeds.shift();
  if (!next) return;
  seeding += 1;
  const { store, channel } = next;
  const to = Math.ceil(store.now() / 1000);
  const query = new URLSearchParams({ channel: channel.id, from: to - RECENT_MS / 1000, to, buckets: 120 });
  try {
    const told = await getJson(`./api/v1/history?${query}`);
    if (Array.isArray(told.t) && Array.isArray(told.mean)) {
      const times = told.t.slice(0, 240).map(Number);
      store.seedRecent(channel, times, told.mean.slice(0, 240).map(Number));
    }
  } catch {
    // The curve then begins with what arrives live; that the API fails is said elsewhere.
  }
  seeding -= 1;
  seedNext();
}

function grouped(store, words) {
  const byDevice = new Map();
  for (const channel of store.channels.values()) {
    const device = store.devices.get(channel.device);
    const says = `${channel.id} ${channel.title} ${device?.title ?? ""} ${device?.type ?? ""}`.toLowerCase();
    if (!words.every((word) => says.includes(word))) continue;
    const list = byDevice.get(channel.device) ?? [];
    byDevice.set(channel.device, list);
    list.push(channel);
  }
  const groups = [...byDevice].map(([name, channels]) => {
    const order = channels.map((channel) => [rank(channel), channel]);
    order.sort(([a, x], [b, y]) => a - b || (x.id < y.id ? -1 : 1));
    return { name, channels: order.map(([, channel]) => channel) };
  });
  // The gateway's own vital signs come last: nobody opens the page for them unless something is wrong.
  const weight = ({ name, channels }) => (store.devices.get(name)?.type === "host" ? 1e6 : 0) - channels.length;
  return groups.sort((a, b) => weight(a) - weight(b) || (a.name < b.name ? -1 : 1));
}

function rank(channel) {
  if (channel.kind === "actuator") return -1;
  const at = IMPORTANT.findIndex((pattern) => pattern.test(channel.name));
  return at < 0 ? IMPORTANT.length : at;
}

function rawValue(value) {
  return value === null || value === undefined ? "" : String(value).slice(0, 120);
}

/** Which colour and shape a device's state has. */
export const DEVICE_MOODS = { online: "ok", degraded: "warn", probing: "warn", absent: "bad" };

const seeds = [];
let seeding = 0;

const FOLD_ABOVE = 12;
const FOLD_SHOWS = 12;

// Which channels of a big device are shown while it is folded, in this order.
const IMPORTANT = [
  /^(temperature|temp)$/,
  /^(humidity|pressure)$/,
  /(cpu|soc|core|package).*temp|temp.*(cpu|soc|core|package)/,
  /(under.?volt|throttl)/,
  /^load_?1m?$|^load$/,
  /^(mem|memory|ram).*(avail|used|free)/,
  /^(disk|root|state).*(free|used|avail)/,
  /^cpu_?(use|usage|busy|load|percent)/,
  /^uptime$/,
  /(rx|received|tx|sent).*(rate|per_s)|(rate).*(rx|tx)/,
  /temp/,
];
