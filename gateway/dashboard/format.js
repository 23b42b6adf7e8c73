// How things are said: units for people, numbers, ages, sizes, and text that came from outside.

/** The text without what could reorder or hide its neighbours, at most `limit` characters long. */
export function plain(text, limit = 160) {
  // Cut first: a payload may be megabytes and the page shows a line.
  const cut = String(text ?? "").slice(0, limit * 2).replace(UNPRINTABLE, "\u{fffd}").trim();
  const letters = Array.from(cut);
  return letters.length > limit ? `${letters.slice(0, limit - 1).join("")}…` : cut;
}

/** A number with `digits` behind the point, in the reader's own notation. */
export function number(value, digits = 0) {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 1e15) return value.toExponential(3);
  let format = formats.get(digits);
  if (!format) {
    format = new Intl.NumberFormat(undefined, { minimumFractionDigits: digits, maximumFractionDigits: digits });
    formats.set(digits, format);
  }
  // What rounds to nothing has no sign.
  return format.format(Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value);
}

/** A count that reads well at any size: `987`, `12,345`, `1.2 M`. */
export function count(value) {
  return value >= 1e6 ? `${number(value / 1e6, value >= 1e7 ? 0 : 1)} M` : number(Math.round(value));
}

// The space before a unit does not break.

/** Bytes in binary steps: `512 B`, `1.20 MiB`. */
export function bytes(value) {
  const scale = scaleOf("By", value);
  return `${number(value / scale.per, scale.digits(value / scale.per))}\u00a0${scale.label}`;
}

/** Bytes in decimal steps, as the configuration and the shops write them: `512 B`, `120 MB`, `1.5 GB`. */
export function size(value) {
  if (!Number.isFinite(value)) return "–";
  let step = 0;
  while (step < SIZES.length - 1 && value >= 999.5 * 1000 ** step) step += 1;
  const shown = value / 1000 ** step;
  // A limit is a round number: `1 GB`, not `1.00 GB`.
  return `${number(shown, step === 0 || Number.isInteger(shown) ? 0 : threeFigures(shown))}\u00a0${SIZES[step]}`;
}

/** A length of time in seconds, at most two steps of it: `8 s`, `3 min`, `2 h 5 min`, `4 d 3 h`. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const s = Math.max(0, seconds);
  if (s < 10 && s % 1 >= 0.05) return `${number(s, 1)}\u00a0s`;
  if (s < 119.5) return `${Math.round(s)}\u00a0s`;
  if (s < 3600) return `${Math.floor(s / 60)}\u00a0min`;
  const [big, bigName, small, smallName] = s < 86400 ? [3600, "h", 60, "min"] : [86400, "d", 3600, "h"];
  const rest = Math.floor((s % big) / small);
  return `${Math.floor(s / big)}\u00a0${bigName}${rest ? ` ${rest}\u00a0${smallName}` : ""}`;
}

/** How long ago, for a person: `now`, `12 s ago`, `3 h ago`. */
export function age(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 1.5) return "now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** A moment (ms since 1970) in the reader's own zone and notation. */
export function moment(ms) {
  return Number.isFinite(ms) ? momentFormat.format(ms) : "–";
}

/**
 * The unit a person would use for values of about `magnitude`: `{label, per, digits(shown)}`,
 * where shown value = value / per. `precision` is how many digits behind the point the sensor gives.
 */
export function scaleOf(unit, magnitude, precision = null) {
  const size = Math.abs(magnitude);
  const fixed = (per, label, most = 6) => {
    const digits = precision === null || precision === undefined ? null : Math.round(precision + Math.log10(per));
    return {
      label,
      per,
      digits: (shown) => Math.max(0, Math.min(most, digits ?? guessDigits(shown))),
    };
  };
  const stepped = (base, labels) => {
    let step = 0;
    while (step < labels.length - 1 && size >= base ** (step + 1)) step += 1;
    return step === 0 ? fixed(1, labels[0]) : { label: labels[step], per: base ** step, digits: threeFigures };
  };
  switch (unit) {
    case "B":
    case "By":
      return { ...stepped(1024, ["B", "KiB", "MiB", "GiB", "TiB"]), ...(size < 1024 && { digits: () => 0 }) };
    case "B/s":
    case "By/s":
      return stepped(1024, ["B/s", "KiB/s", "MiB/s", "GiB/s"]);
    case "Pa":
      // Air pressure is spoken of in hPa; a fan's few pascals are not.
      return size >= 1000 ? { label: "hPa", per: 100, digits: () => 1 } : fixed(1, "Pa");
    case "/":
      return { label: "%", per: 0.01, digits: (shown) => Math.min(1, guessDigits(shown)) };
    case "s":
      if (size >= 2 * 86400) return { label: "d", per: 86400, digits: () => 1 };
      if (size >= 7200) return { label: "h", per: 3600, digits: () => 1 };
      if (size >= 120) return { label: "min", per: 60, digits: () => 1 };
      return fixed(1, "s");
    case "Hz":
      return stepped(1000, ["Hz", "kHz", "MHz", "GHz"]);
    case "W":
    case "Wh":
    case "J":
      return size >= 10_000 ? { label: `k${unit}`, per: 1000, digits: threeFigures } : fixed(1, unit);
    default:
      return fixed(1, pick(LABELS, unit, plain(unit, 12)));
  }
}

/** A channel's value for a person: `{text, unit}`. */
export function reading(channel) {
  const { value, unit, precision } = channel;
  if (value === null || value === undefined) return { text: "–", unit: "" };
  if (typeof value === "boolean") return { text: stateWord(channel, value), unit: "" };
  if (typeof value !== "number") return { text: plain(value, 120), unit: "" };
  // Uptimes and the like read better as words than as 5.3 d.
  if (unit === "s" && Math.abs(value) >= 120) return { text: duration(value), unit: "" };
  const scale = scaleOf(unit, value, precision);
  const shown = value / scale.per;
  return { text: number(shown, scale.digits(shown)), unit: scale.label };
}

/** What true or false means on this channel: open/closed, wet/dry, on/off. */
export function stateWord(channel, isTrue) {
  const says = `${channel.id} ${channel.title}`.toLowerCase();
  const [yes, no] = (STATE_WORDS.find(([pattern]) => pattern.test(says)) ?? [null, "on", "off"]).slice(1);
  return isTrue ? yes : no;
}

/** `table[key]`, or `otherwise`: keys from outside must not reach what every object has. */
export function pick(table, key, otherwise) {
  return Object.hasOwn(table, key) ? table[key] : otherwise;
}

function guessDigits(shown) {
  const size = Math.abs(shown);
  if (Number.isInteger(shown) || size >= 1000) return 0;
  if (size >= 100) return 1;
  return size >= 1 || size === 0 ? 2 : 3;
}

function threeFigures(shown) {
  const size = Math.abs(shown);
  if (size >= 99.95) return 0;
  return size >= 9.995 ? 1 : 2;
}

// Control characters, and those that turn the direction of the text around them (Trojan Source).
const UNPRINTABLE = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

const SIZES = ["B", "kB", "MB", "GB", "TB"];

const LABELS = {
  Cel: "°C",
  K: "K",
  "%RH": "%",
  "%EL": "%",
  EL: "s",
  deg: "°",
  lat: "°",
  lon: "°",
  m2: "m²",
  m3: "m³",
  "m3/s": "m³/s",
  "m/s2": "m/s²",
  "W/m2": "W/m²",
  "kg/m3": "kg/m³",
  "ug/m3": "µg/m³",
  "/100": "%",
  "/1000": "‰",
  "1/s": "/s",
  "1/min": "/min",
  rpm: "rpm",
  Ohm: "Ω",
  "beat/min": "bpm",
  count: "",
  1: "",
  "": "",
};

const STATE_WORDS = [
  [/\bclosed\b/, "closed", "open"],
  [/\b(open|door|window|hatch|gate|lid|contact)\b/, "open", "closed"],
  [/\b(leak|flood|wet|water)\b/, "wet", "dry"],
  [/\b(motion|presence|occupancy)\b/, "seen", "clear"],
  [/(under.?volt|throttl|fault|alarm|error|capped|problem|limit)/, "yes", "no"],
];

const formats = new Map();
const momentFormat = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
