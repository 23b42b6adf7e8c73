// The little curve at a tile's foot: the last minutes, filled like water, broken where nothing was measured.

import { html, useMemo } from "./html.js";
import { RECENT_MS, STATE_SILENCE_S } from "./store.js";

/** Draws `channel.recent`; `nowMs` is the right edge. */
export function Spark({ channel, nowMs }) {
  const { recent } = channel;
  const paths = useMemo(() => draw(channel, nowMs), [recent.version, Math.floor(nowMs / REDRAW_MS)]);
  if (!paths) return html`<div class="spark" aria-hidden="true"></div>`;
  return html`
    <svg class="spark" viewBox=${`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" aria-hidden="true">
      <path class="spark-water" d=${paths.area} />
      <path class="spark-line" d=${paths.line} />
    </svg>
  `;
}

function draw(channel, nowMs) {
  const { t, v } = channel.recent;
  if (t.length < 2) return null;
  const isStepped = channel.type === "boolean" || typeof channel.value === "boolean";
  const [low, high] = isStepped ? [0, 1] : extent(v, channel.precision);
  // What has only begun is drawn wide enough to be seen.
  const windowMs = Math.min(RECENT_MS, Math.max(WINDOW_MIN_MS, nowMs - t[0]));
  const x = (at) => round(WIDTH * (1 - (nowMs - at) / windowMs));
  const y = (value) => round(HEIGHT - MARGIN - ((value - low) / (high - low)) * (HEIGHT - 2 * MARGIN));
  const gapMs = Math.max(isStepped ? STATE_SILENCE_S * 1000 : GAP_MIN_MS, channel.everyS * 4000, typicalStep(t) * 3);
  let line = "";
  let area = "";
  let start = 0;
  for (let i = 1; i <= t.length; i += 1) {
    if (i < t.length && t[i] - t[i - 1] <= gapMs) continue;
    let run = `${x(t[start])} ${y(v[start])}`;
    for (let k = start + 1; k < i; k += 1) {
      if (isStepped) run += `L${x(t[k])} ${y(v[k - 1])}`;
      run += `L${x(t[k])} ${y(v[k])}`;
    }
    line += `M${run}`;
    area += `M${x(t[start])} ${HEIGHT}L${run}L${x(t[i - 1])} ${HEIGHT}Z`;
    start = i;
  }
  return { line, area };
}

// The last digit's noise must not look like a storm: the height is at least some of the sensor's own steps.
function extent(values, precision) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const least = Math.max(10 ** -(precision ?? 2) * 6, Math.abs(high) * 1e-4);
  const missing = Math.max(0, least - (high - low)) / 2;
  return [low - missing, high + missing];
}

function typicalStep(t) {
  const middle = Math.floor(t.length / 2);
  return (t[middle] - t[0]) / Math.max(1, middle);
}

function round(number) {
  return Math.round(number * 10) / 10;
}

const WIDTH = 200;
const HEIGHT = 36;
const MARGIN = 3;
const WINDOW_MIN_MS = 60_000;
const GAP_MIN_MS = 10_000;
const REDRAW_MS = 5000;
