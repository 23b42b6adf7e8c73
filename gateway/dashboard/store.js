// What the page knows: channels and devices by name, the gateway's status, the link. Messages change it
// at once; whoever shows a part of it is told at most once per animation frame, and only of that part.

import { useEffect, useReducer } from "./html.js";
import { plain } from "./format.js";
import { Drains } from "./drain.js";

/** The page's whole state. Parts are named: `link`, `status`, `channels`, `device:<name>`, `channel:<id>`, `tick`. */
export class Store {
  gateway = "";
  /** The gateway's own word about itself, by its will: "online", "offline", or "" when nothing was said. */
  gatewayState = "";
  link = { state: "connecting", detail: "", since: Date.now() };
  status = null;
  statusAt = 0;
  apiError = "";
  channels = new Map();
  devices = new Map();
  /** How the uplinks' backlogs go down. */
  drains = new Drains();
  /** Messages that were not taken up, because of their name or because there were too many channels. */
  ignored = 0;
  #skewMs = 0;
  #listeners = new Map();
  #changed = new Set();
  #frame = 0;
  #onUnknown;
  #onCommand;

  /** `onUnknown()` is called when a channel shows up that the API did not list. */
  constructor({ onUnknown, onCommand }) {
    this.#onUnknown = onUnknown;
    this.#onCommand = onCommand;
  }

  /** Milliseconds since 1970 by the gateway's clock: readings carry its time, and a phone's may differ. */
  now() {
    return Date.now() + this.#skewMs;
  }

  on(part, listener) {
    const of = this.#listeners.get(part) ?? new Set();
    this.#listeners.set(part, of);
    of.add(listener);
    return () => of.delete(listener);
  }

  changed(part) {
    this.#changed.add(part);
    // A hidden page gets no frames: the changes wait in a set that cannot grow beyond the names.
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      const parts = [...this.#changed];
      this.#changed.clear();
      for (const name of parts) for (const listener of this.#listeners.get(name) ?? []) listener();
    });
  }

  setLink(state, detail) {
    if (state === "connecting" && this.link.state === "lost") return;
    const since = this.link.state === state ? this.link.since : Date.now();
    this.link = { state, detail, since };
    this.changed("link");
  }

  setStatus(status, roundTripMs) {
    this.status = status;
    this.statusAt = Date.now();
    const said = Date.parse(status.time?.now);
    if (Number.isFinite(said)) this.#skewMs = said + roundTripMs / 2 - this.statusAt;
    this.gateway ||= status.gateway;
    this.drains.take(list(status.uplinks), this.statusAt);
    for (const told of list(status.devices)) this.#device(told.name, { ...told, isListed: true });
    this.setApiError("");
    this.changed("status");
  }

  setApiError(text) {
    if (this.apiError === text) return;
    this.apiError = text;
    this.changed("status");
  }

  /** Takes over the API's list: new channels appear, those it no longer has go. */
  setChannels(told) {
    const listed = new Set();
    for (const one of list(told).slice(0, CHANNELS_MAX)) {
      const channel = this.#channel(String(one.id));
      if (!channel) continue;
      listed.add(channel.id);
      const { value, time, ...rest } = one;
      Object.assign(channel, described(channel, rest), { isListed: true });
      const at = Date.parse(time);
      if (value !== null && value !== undefined && !(channel.at > at)) {
        channel.value = value;
        channel.at = at;
      }
      this.changed(`channel:${channel.id}`);
    }
    for (const [id, channel] of this.channels) {
      if (channel.isListed && !listed.has(id)) this.channels.delete(id);
    }
    this.changed("channels");
  }

  /** One MQTT message of our gateway's tree. */
  take(topic, payload, isRetained) {
    const levels = topic.split("/");
    if (levels[0] !== "tidegate" || levels[1] !== this.gateway) return this.#ignore();
    const [first, second, third, fourth, more] = levels.slice(2);
    if (second === undefined) {
      if (first !== "$state") return this.#ignore();
      this.gatewayState = plain(text(payload, 64), 32);
      return this.changed("link");
    }
    if (!NAME.test(first) || more !== undefined) return this.#ignore();
    if (second === "$state" && third === undefined) return this.#takeDeviceState(first, payload);
    if (!NAME.test(second)) return this.#ignore();
    const id = `${first}/${second}`;
    if (third === undefined) return this.#takeValue(id, payload, isRetained);
    if (third === "meta" && fourth === undefined) return this.#takeMeta(id, payload);
    if (third === "set" && fourth === "result" && !isRetained) return this.#takeResult(id, payload);
  }

  /** Asks an actuator for `value` and shows how it goes. */
  command(channel, value) {
    const asked = { state: "pending", value, at: Date.now(), text: "asked…" };
    channel.command = asked;
    if (this.#onCommand(`tidegate/${this.gateway}/${channel.id}/set`, String(value))) {
      setTimeout(() => {
        if (channel.command === asked) this.#settle(channel, "failed", `no answer in ${COMMAND_WAIT_MS / 1000} s`);
      }, COMMAND_WAIT_MS);
    } else {
      this.#settle(channel, "failed", "not sent: no connection");
    }
    this.changed(`channel:${channel.id}`);
  }

  /** Puts history before what has arrived live, for the little curve of a tile. */
  seedRecent(channel, times, values) {
    const first = channel.recent.t[0] ?? Infinity;
    const older = times.findIndex((t) => t * 1000 >= first);
    const end = older < 0 ? times.length : older;
    channel.recent.t.unshift(...times.slice(0, end).map((t) => t * 1000));
    channel.recent.v.unshift(...values.slice(0, end));
    channel.recent.version += 1;
    this.changed(`channel:${channel.id}`);
  }

  #takeValue(id, payload, isRetained) {
    // An empty payload takes a retained value back: the last one stays, its quality tells.
    if (!payload.length) return;
    const channel = this.#channel(id);
    if (!channel) return this.#ignore();
    if (!channel.isListed) this.#onUnknown();
    channel.value = parsed(text(payload, TEXT_MAX), channel.type);
    // A retained value may be hours old; when it was measured stands in the API's list.
    if (!isRetained) this.#addRecent(channel, this.now());
    else if (!channel.at) channel.at = NaN;
    this.changed(`channel:${id}`);
  }

  #takeMeta(id, payload) {
    const meta = json(payload);
    const channel = meta && this.#channel(id);
    if (!channel) return this.#ignore();
    const told = described(channel, meta);
    const isElse = ["title", "kind", "type"].some((key) => told[key] !== channel[key]);
    Object.assign(channel, told);
    if (typeof channel.value === "string") channel.value = parsed(channel.value, channel.type);
    const at = Date.parse(meta.time);
    if (!(channel.at > at)) channel.at = at;
    this.changed(`channel:${id}`);
    if (isElse) this.changed("channels");
  }

  #takeDeviceState(name, payload) {
    const told = json(payload);
    if (!told) return this.#ignore();
    this.#device(name, told);
  }

  #takeResult(id, payload) {
    const channel = this.channels.get(id);
    const told = json(payload);
    if (!channel || !told) return this.#ignore();
    if (told.ok) this.#settle(channel, "done", "done");
    else this.#settle(channel, "failed", plain(told.error, 120) || "refused");
  }

  #settle(channel, state, said) {
    const settled = { ...channel.command, state, text: said, at: Date.now() };
    channel.command = settled;
    this.changed(`channel:${channel.id}`);
    if (state !== "done") return;
    setTimeout(() => {
      if (channel.command !== settled) return;
      channel.command = null;
      this.changed(`channel:${channel.id}`);
    }, COMMAND_SHOWN_MS);
  }

  #addRecent(channel, at) {
    if (Number.isFinite(channel.at) && channel.arrivals > 0) {
      const apart = (at - channel.at) / 1000;
      // The longest usual wait, slowly forgotten: a burst does not make what follows look late.
      channel.everyS = Math.max(channel.everyS * 0.97, apart);
    }
    channel.arrivals += 1;
    channel.at = at;
    const shown = typeof channel.value === "boolean" ? Number(channel.value) : channel.value;
    if (typeof shown !== "number") return;
    const { t, v } = channel.recent;
    // Fast channels keep their newest value per step, so that the window fits the bound.
    if (t.length && at - t[t.length - 1] < RECENT_STEP_MS) {
      v[v.length - 1] = shown;
      return;
    }
    t.push(at);
    v.push(shown);
    while (t.length && t[0] < at - RECENT_MS) {
      t.shift();
      v.shift();
    }
    channel.recent.version += 1;
  }

  #device(name, told) {
    if (!NAME.test(name) || (!this.devices.has(name) && this.devices.size >= DEVICES_MAX)) return this.#ignore();
    const device = this.devices.get(name) ?? { name, title: name, state: "unknown", detail: "", type: "", bus: "" };
    for (const key of ["title", "state", "detail", "type", "bus"]) {
      if (told[key] !== undefined && told[key] !== null) device[key] = plain(told[key], 200);
    }
    for (const key of ["errors", "last_s"]) if (Number.isFinite(told[key])) device[key] = told[key];
    if (told.simulated !== undefined) device.simulated = told.simulated === true;
    const isNew = !this.devices.has(name);
    this.devices.set(name, device);
    this.changed(`device:${name}`);
    if (isNew) this.changed("channels");
  }

  #channel(id) {
    const known = this.channels.get(id);
    if (known) return known;
    const [device, name, more] = id.split("/");
    if (!NAME.test(device) || !NAME.test(name ?? "") || more !== undefined) return null;
    if (this.channels.size >= CHANNELS_MAX) return null;
    const channel = {
      id,
      device,
      name,
      title: sentence(name),
      unit: "",
      kind: "sensor",
      type: null,
      precision: null,
      range: null,
      simulated: false,
      quality: "good",
      clock: "",
      value: null,
      at: 0,
      arrivals: 0,
      everyS: 0,
      command: null,
      isListed: false,
      recent: { t: [], v: [], version: 0 },
    };
    this.channels.set(id, channel);
    this.changed("channels");
    return channel;
  }

  #ignore() {
    this.ignored += 1;
  }
}

/** Renders the component again whenever one of `parts` changed. */
export function useStore(store, ...parts) {
  const [, again] = useReducer((n) => n + 1, 0);
  useEffect(() => {
    const offs = parts.map((part) => store.on(part, again));
    return () => offs.forEach((off) => off());
  }, [store, parts.join(" ")]);
}

/** Whether the last value is older than this channel's own rhythm explains. */
export function isOverdue(channel, nowMs) {
  // States and words come when they change, not by a clock.
  if (typeof channel.value !== "number" || !Number.isFinite(channel.at) || channel.arrivals < 3) return false;
  return nowMs - channel.at > Math.max(15_000, channel.everyS * 5000);
}

/** How long the tiles' little curves reach back. */
export const RECENT_MS = 10 * 60_000;

/** A state is told when it changes and once a minute besides: shorter silence is not a gap. */
export const STATE_SILENCE_S = 180;

function described(channel, told) {
  const range = Array.isArray(told.range) && told.range.length === 2 ? told.range.map(Number) : channel.range;
  const precision = Number.isInteger(told.precision) && told.precision >= 0 && told.precision <= 9;
  return {
    title: plain(told.title, 80) || channel.title,
    unit: told.unit === undefined ? channel.unit : told.unit === null ? "" : String(told.unit).slice(0, 32),
    kind: ["sensor", "actuator", "counter"].includes(told.kind) ? told.kind : channel.kind,
    type: ["number", "boolean", "text"].includes(told.type) ? told.type : channel.type,
    precision: precision ? told.precision : channel.precision,
    range,
    simulated: told.simulated === undefined ? channel.simulated : told.simulated === true,
    quality: plain(told.quality, 200) || channel.quality,
    clock: plain(told.clock, 16) || channel.clock,
  };
}

function parsed(said, type) {
  if (type === "text") return said;
  if (type !== "number" && (said === "true" || said === "false")) return said === "true";
  const value = Number(said);
  return said.trim() !== "" && Number.isFinite(value) ? value : said;
}

function text(payload, limit) {
  return decoder.decode(payload.subarray(0, limit));
}

function json(payload) {
  if (payload.length > JSON_MAX) return null;
  try {
    const value = JSON.parse(decoder.decode(payload));
    return value && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}

function list(value) {
  return Array.isArray(value) ? value : [];
}

function sentence(name) {
  const words = name.replace(/[_-]+/g, " ");
  return words.charAt(0).toUpperCase() + words.slice(1);
}

// The gateway's own rule for names; what a LAN client publishes beside it is not a channel.
const NAME = /^[a-z0-9][a-z0-9_-]{0,63}$/;
const CHANNELS_MAX = 2000;
const DEVICES_MAX = 500;
const TEXT_MAX = 1024;
const JSON_MAX = 16 * 1024;
const RECENT_STEP_MS = 2500;
const COMMAND_WAIT_MS = 8000;
const COMMAND_SHOWN_MS = 6000;
const decoder = new TextDecoder();
