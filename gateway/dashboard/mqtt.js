// A small MQTT 3.1.1 client over WebSocket: connects, subscribes and publishes at QoS 0, keeps itself
// alive and comes back by itself. What the page needs of the standard and no more; an unexpected or
// malformed packet closes the connection, and the next attempt starts clean.

/**
 * One lasting connection to a broker.
 *
 * `onLink("connecting" | "live" | "lost", detail)` tells of every change of the link,
 * `onMessage(topic, payload: Uint8Array, isRetained)` of every message.
 */
export class MqttClient {
  #url;
  #onLink;
  #onMessage;
  #filters = new Set();
  #socket = null;
  #received = EMPTY;
  #isConnected = false;
  #attempt = 0;
  #packetId = 0;
  #retryTimer = 0;
  #deadlineTimer = 0;
  #pingTimer = 0;

  constructor(url, { onLink, onMessage }) {
    this.#url = url;
    this.#onLink = onLink;
    this.#onMessage = onMessage;
  }

  /** Opens the connection unless one is open or being opened; waiting for the next try ends now. */
  connect() {
    clearTimeout(this.#retryTimer);
    if (this.#socket) return;
    this.#onLink("connecting", "");
    const socket = new WebSocket(this.#url, "mqtt");
    socket.binaryType = "arraybuffer";
    this.#socket = socket;
    this.#received = EMPTY;
    this.#deadlineTimer = setTimeout(() => this.#drop("no answer"), HANDSHAKE_MS);
    socket.onopen = () => this.#send(connectPacket());
    socket.onmessage = (event) => this.#receive(socket, event.data);
    socket.onclose = (event) => {
      if (this.#socket === socket) this.#drop(event.reason || `closed (${event.code})`);
    };
  }

  /** Subscribes now and after every reconnect. */
  subscribe(filter) {
    if (this.#filters.has(filter)) return;
    this.#filters.add(filter);
    if (this.#isConnected) this.#sendSubscribe([filter]);
  }

  /** Publishes at QoS 0, not retained. False when there is no connection: nothing is queued. */
  publish(topic, text) {
    if (!this.#isConnected) return false;
    const body = concat([string(topic), utf8(text)]);
    return this.#send(packet(PUBLISH, body));
  }

  /** Asks the broker for a sign of life at once, for instance when the page was asleep. */
  probe() {
    if (this.#isConnected) this.#ping();
    else this.connect();
  }

  #send(bytes) {
    if (this.#socket?.readyState !== WebSocket.OPEN) return false;
    this.#socket.send(bytes);
    return true;
  }

  #sendSubscribe(filters) {
    this.#packetId = (this.#packetId % 0xffff) + 1;
    const parts = [u16(this.#packetId)];
    for (const filter of filters) parts.push(string(filter), Uint8Array.of(0));
    this.#send(packet(SUBSCRIBE | 0x02, concat(parts)));
  }

  #receive(socket, data) {
    // Messages of a connection that was already given up are not for us.
    if (this.#socket !== socket) return;
    if (!(data instanceof ArrayBuffer)) return this.#drop("a text frame where MQTT was expected");
    const arrived = new Uint8Array(data);
    let bytes = this.#received.length ? concat([this.#received, arrived]) : arrived;
    for (;;) {
      const next = takePacket(bytes);
      if (next === "malformed") return this.#drop("malformed packet");
      if (next === "incomplete") break;
      bytes = bytes.subarray(next.size);
      this.#handle(next.first, next.body);
      if (this.#socket !== socket) return;
    }
    this.#received = bytes.slice();
  }

  #handle(first, body) {
    const kind = first & 0xf0;
    // Whatever arrives proves that the peer lives.
    if (this.#isConnected) this.#schedulePing();
    if (kind === CONNACK) return this.#handleConnack(body);
    if (!this.#isConnected) return this.#drop("no CONNACK first");
    if (kind === PUBLISH) return this.#handlePublish(first, body);
    if (kind === SUBACK && body.subarray(2).some((code) => code === 0x80)) {
      this.#drop("the subscription was refused");
    }
  }

  #handleConnack(body) {
    if (body.length < 2 || body[1] !== 0) return this.#drop(REFUSALS[body[1]] ?? "connection refused");
    this.#isConnected = true;
    this.#attempt = 0;
    this.#schedulePing();
    if (this.#filters.size) this.#sendSubscribe(this.#filters);
    this.#onLink("live", "");
  }

  #handlePublish(first, body) {
    const qos = (first >> 1) & 3;
    const topicEnd = body.length < 2 ? Infinity : 2 + ((body[0] << 8) | body[1]);
    const payloadStart = topicEnd + (qos ? 2 : 0);
    // We subscribe at QoS 0: a broker that sends more than that does not keep to the subscription.
    if (payloadStart > body.length || qos > 1) return this.#drop("malformed PUBLISH");
    if (qos === 1) this.#send(packet(PUBACK, body.subarray(topicEnd, payloadStart)));
    const topic = decoder.decode(body.subarray(2, topicEnd));
    this.#onMessage(topic, body.subarray(payloadStart), (first & 1) === 1);
  }

  #schedulePing() {
    clearTimeout(this.#deadlineTimer);
    clearTimeout(this.#pingTimer);
    this.#pingTimer = setTimeout(() => this.#ping(), PING_AFTER_MS);
  }

  #ping() {
    clearTimeout(this.#pingTimer);
    clearTimeout(this.#deadlineTimer);
    this.#send(packet(PINGREQ, EMPTY));
    this.#deadlineTimer = setTimeout(() => this.#drop("no answer to a ping"), PING_ANSWER_MS);
  }

  #drop(detail) {
    clearTimeout(this.#deadlineTimer);
    clearTimeout(this.#pingTimer);
    const socket = this.#socket;
    this.#socket = null;
    this.#isConnected = false;
    this.#received = EMPTY;
    socket?.close();
    this.#attempt += 1;
    const ceiling = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** (this.#attempt - 1));
    // Jitter keeps a room full of open pages from coming back in step.
    const wait = ceiling * (0.5 + Math.random() / 2);
    this.#retryTimer = setTimeout(() => this.connect(), wait);
    this.#onLink("lost", detail);
  }
}

/** The first packet in `bytes`: `{first, body, size}`, or "incomplete", or "malformed". */
export function takePacket(bytes) {
  let length = 0;
  for (let i = 0; i < 4; i += 1) {
    const at = 1 + i;
    if (at >= bytes.length) return "incomplete";
    length += (bytes[at] & 0x7f) * 128 ** i;
    if (length > PACKET_MAX) return "malformed";
    if (bytes[at] < 0x80) {
      const start = at + 1;
      if (bytes.length < start + length) return "incomplete";
      return { first: bytes[0], body: bytes.subarray(start, start + length), size: start + length };
    }
  }
  return "malformed";
}

function connectPacket() {
  const name = `page-${Math.random().toString(36).slice(2, 12)}`;
  const cleanSession = 0x02;
  return packet(CONNECT, concat([string("MQTT"), Uint8Array.of(4, cleanSession), u16(KEEP_ALIVE_S), string(name)]));
}

function packet(first, body) {
  const head = [first];
  let left = body.length;
  do {
    const digit = left % 128;
    left = Math.floor(left / 128);
    head.push(left ? digit | 0x80 : digit);
  } while (left);
  return concat([Uint8Array.from(head), body]);
}

function string(text) {
  const bytes = utf8(text);
  return concat([u16(bytes.length), bytes]);
}

function u16(number) {
  return Uint8Array.of(number >> 8, number & 0xff);
}

function utf8(text) {
  return encoder.encode(text);
}

function concat(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

const CONNECT = 0x10;
const CONNACK = 0x20;
const PUBLISH = 0x30;
const PUBACK = 0x40;
const SUBSCRIBE = 0x80;
const SUBACK = 0x90;
const PINGREQ = 0xc0;
const EMPTY = new Uint8Array(0);
const encoder = new TextEncoder();
const decoder = new TextDecoder();

// What the page keeps of one packet; a reading is some bytes, its meta some hundred.
const PACKET_MAX = 1 << 20;
const HANDSHAKE_MS = 8_000;
// A browser slows the timers of a hidden page to one a minute: the broker must bear that.
const KEEP_ALIVE_S = 120;
const PING_AFTER_MS = 20_000;
const PING_ANSWER_MS = 10_000;
const RETRY_MIN_MS = 500;
const RETRY_MAX_MS = 15_000;

// MQTT 3.1.1 §3.2.2.3
const REFUSALS = {
  1: "the broker does not speak MQTT 3.1.1",
  2: "the broker refused our name",
  3: "the broker is not available",
  4: "the broker wants other credentials",
  5: "the broker does not allow this page",
};
