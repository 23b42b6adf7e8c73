// One channel's chart: history from the API, live values at its right edge, gaps left open.

import { html, uPlot, useEffect, useLayoutEffect, useMemo, useRef, useState } from "./html.js";
import { STATE_SILENCE_S, useStore } from "./store.js";
import { getJson } from "./api.js";
import { moment, number, plain, reading, scaleOf, stateWord } from "./format.js";
import { Columns } from "./history.js";
import { Actuator } from "./actuator.js";
import { Copy } from "./connect.js";

/** The dialog that shows the channel `id`; closing it leaves its address. */
export function ChartDialog({ store, id }) {
  useStore(store, "channels", `channel:${id}`);
  const dialog = useRef(null);
  useLayoutEffect(() => dialog.current.showModal(), []);
  const close = () => {
    if (location.hash === `#/${id}`) history.replaceState(null, "", location.pathname + location.search);
    dispatchEvent(new Event("hashchange"));
  };
  const channel = store.channels.get(id);
  const device = channel && store.devices.get(channel.device);
  const shown = channel && reading(channel);
  return html`
    <dialog
      ref=${dialog}
      class="sheet"
      aria-labelledby="chart-title"
      onClose=${close}
      onClick=${(event) => event.target === dialog.current && dialog.current.close()}
    >
      <div class="sheet-inner">
        <header class="sheet-head">
          <div>
            <p class="sheet-device">
              ${plain(device?.title || id.split("/")[0], 80)}
              ${channel?.simulated && html` <span class="sim">sim</span>`}
            </p>
            <h2 id="chart-title">${channel ? channel.title : id}</h2>
          </div>
          ${shown &&
          html`<p class="sheet-value">
            <bdi class="number">${plain(shown.text, 40)}</bdi>
            ${shown.unit && html`<span class="unit"> ${shown.unit}</span>`}
          </p>`}
          <button type="button" class="close" aria-label="Close the chart" onClick=${() => dialog.current.close()}>
            <svg viewBox="0 0 16 16" width="18" height="18" aria-hidden="true"><path d="M3 3l10 10M13 3 3 13" /></svg>
          </button>
        </header>
        ${channel && channel.quality !== "good" && html`<p class="notice is-warn">${channel.quality}</p>`}
        ${channel?.kind === "actuator" && html`<${Actuator} store=${store} channel=${channel} />`}
        ${!channel
          ? html`<p class="empty">
              ${store.channels.size ? "There is no such channel (any more)." : "Waiting for the gateway…"}
            </p>`
          : channel.type === "text"
            ? html`<p class="empty">This channel carries text; there is no curve to draw.</p>`
            : html`<${History} store=${store} channel=${channel} />`}
        ${channel && html`<${Addresses} store=${store} channel=${channel} />`}
      </div>
    </dialog>
  `;
}

// `view` is the window in time: `{span}` follows the clock, `{from, to}` (s) stands still.
function History({ store, channel }) {
  const [view, setView] = useState({ span: SPANS[1].seconds });
  const [loaded, setLoaded] = useState({ columns: null, error: "" });
  const isLive = view.span !== undefined;
  const bounds = () => (isLive ? [store.now() / 1000 - view.span, store.now() / 1000] : [view.from, view.to]);

  useEffect(() => {
    const abort = new AbortController();
    const load = async () => {
      const [from, to] = bounds();
      const query = new URLSearchParams({
        channel: channel.id,
        from: Math.floor(from),
        to: Math.ceil(to),
        buckets: bucketsFor(to - from),
      });
      try {
        const told = await getJson(`./api/v1/history?${query}`, abort.signal);
        setLoaded({ columns: Columns.from(told), error: "" });
      } catch (error) {
        if (!abort.signal.aborted) setLoaded((before) => ({ ...before, error: error.message }));
      }
    };
    load();
    // Long windows are asked for again now and then: their buckets hold more than this page has heard.
    const timer = isLive ? setInterval(() => !document.hidden && load(), Math.max(60_000, view.span * 5)) : 0;
    return () => {
      abort.abort();
      clearInterval(timer);
    };
  }, [channel, view]);

  const move = (share, stretch = 1) => {
    const [from, to] = bounds();
    const width = Math.max(SHORTEST_S, Math.min(LONGEST_S, (to - from) * stretch));
    const middle = (from + to) / 2 + (to - from) * share;
    const end = Math.min(middle + width / 2, store.now() / 1000);
    setView({ from: end - width, to: end });
  };
  const [from, to] = bounds();
  const query = new URLSearchParams({ channel: channel.id, from: Math.floor(from), to: Math.ceil(to), format: "csv" });

  return html`
    <div class="ranges" role="group" aria-label="Time range">
      ${SPANS.map(
        ({ seconds, label }) => html`
          <button
            type="button"
            aria-pressed=${String(view.span === seconds)}
            onClick=${() => setView({ span: seconds })}
          >
            ${label}
          </button>
        `,
      )}
      <span class="ranges-more">
        <${Step} label="Earlier" sign="‹" onStep=${() => move(-0.5)} />
        <${Step} label="Later" sign="›" isDisabled=${isLive} onStep=${() => move(0.5)} />
        <${Step} label="Zoom in" sign="+" onStep=${() => move(isLive ? 0.25 : 0, 0.5)} />
        <${Step} label="Zoom out" sign="−" onStep=${() => move(0, 2)} />
      </span>
    </div>
    ${loaded.error && html`<p class="notice is-bad" role="status">No history: ${loaded.error}.</p>`}
    <${Plot}
      store=${store}
      channel=${channel}
      columns=${loaded.columns}
      bounds=${bounds}
      view=${view}
      onZoom=${setView}
    />
    <p class="chart-foot">
      ${isLive
        ? html`<span>
            ${isTouched ? "Slide a finger along the curve to read it." : "Drag across the curve to look closer."}
          </span>`
        : html`<span>
            ${moment(from * 1000)} to ${moment(to * 1000)}.
            ${" "}<button type="button" onClick=${() => setView({ span: SPANS[1].seconds })}>Back to now</button>
          </span>`}
      <a href=${`./api/v1/export?${query}`} download=${`${channel.id.replace("/", "-")}.csv`}>Download CSV</a>
    </p>
    <${Table} channel=${channel} columns=${loaded.columns} />
  `;
}

function Step({ label, sign, isDisabled = false, onStep }) {
  return html`
    <button type="button" aria-label=${label} title=${label} disabled=${isDisabled} onClick=${onStep}>${sign}</button>
  `;
}

function Plot({ store, channel, columns, bounds, onZoom, view }) {
  const box = useRef(null);
  const readout = useRef(null);
  const [themeCount, setThemeCount] = useState(0);
  // A bool's place on the axis, or the largest value there is to show: that chooses the unit.
  const isState = channel.type === "boolean" || typeof channel.value === "boolean";
  const scale = useMemo(() => {
    const largest = columns?.max.length ? columns.max.reduce((most, one) => Math.max(most, Math.abs(one)), 0) : 0;
    return scaleOf(channel.unit, largest, channel.precision);
  }, [columns, channel.unit, channel.precision]);

  useEffect(() => {
    const follow = () => setThemeCount((n) => n + 1);
    document.addEventListener("themechange", follow);
    return () => document.removeEventListener("themechange", follow);
  }, []);

  useEffect(() => {
    if (!columns) return undefined;
    // The element outlives the reference to it: the observer below still hears of its removal.
    const element = box.current;
    const width = () => Math.max(200, element.clientWidth);
    const height = () => Math.round(Math.min(380, Math.max(220, innerHeight * 0.42)));
    const say = (u) => tellPoint(readout.current, u, channel, scale, isState);
    const rows = () => columns.drawn(scale.per, isState ? STATE_SILENCE_S : 0);
    const options = chartOptions({ channel, scale, isState, bounds, onZoom, say, width: width(), height: height() });
    const plot = new uPlot(options, rows(), element);
    const resized = new ResizeObserver(() => {
      if (element.isConnected && plot.width !== width()) plot.setSize({ width: width(), height: height() });
    });
    resized.observe(element);
    const offTouch = scrubByTouch(plot);
    let lastAt = channel.at;
    const redraw = () => {
      const isFixed = view.span === undefined;
      if (document.hidden || isFixed) return;
      if (channel.at > lastAt && channel.value !== null && typeof channel.value !== "string") {
        lastAt = channel.at;
        columns.append(channel.at / 1000, Number(channel.value));
      }
      columns.forgetBefore(bounds()[0] - columns.step);
      plot.setData(rows());
    };
    const offs = [store.on(`channel:${channel.id}`, redraw), store.on("tick", redraw)];
    return () => {
      offs.forEach((off) => off());
      offTouch();
      resized.disconnect();
      plot.destroy();
    };
  }, [columns, scale, themeCount, view, isState]);

  const isEmpty = columns && !columns.t.length;
  return html`
    <div class="plot-frame">
      <p class="plot-readout" ref=${readout} aria-hidden="true"> </p>
      <div
        class="plot"
        ref=${box}
        data-testid="chart"
        role="img"
        aria-label=${summary(channel, columns, scale, isState)}
      ></div>
      ${!columns && html`<p class="plot-empty">Reading the history…</p>`}
      ${isEmpty && html`<p class="plot-empty">Nothing was measured in this time.</p>`}
    </div>
  `;
}

// The canvas says nothing to a screen reader; this table says the same as the curve.
function Table({ channel, columns }) {
  if (!columns?.t.length) return null;
  const scale = scaleOf(channel.unit, Math.max(...columns.max.map(Math.abs)), channel.precision);
  const cell = (value) => number(value / scale.per, scale.digits(value / scale.per));
  return html`
    <div class="visually-hidden">
      <table>
        <caption>${channel.title}${scale.label && ` in ${scale.label}`}, as in the chart</caption>
        <thead>
          <tr>
            <th scope="col">Time</th>
            <th scope="col">Lowest</th>
            <th scope="col">Mean</th>
            <th scope="col">Highest</th>
          </tr>
        </thead>
        <tbody>
          ${columns.sample(40).map(
            (row) => html`
              <tr key=${row.t}>
                <th scope="row">${moment(row.t * 1000)}</th>
                <td>${cell(row.min)}</td>
                <td>${cell(row.mean)}</td>
                <td>${cell(row.max)}</td>
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
  `;
}

function Addresses({ store, channel }) {
  const topic = `tidegate/${store.gateway}/${channel.id}`;
  const facts = [
    channel.kind,
    channel.unit && `unit ${plain(channel.unit, 12)}`,
    channel.range && channel.range.every(Number.isFinite) && `range ${channel.range[0]} to ${channel.range[1]}`,
    channel.clock && channel.clock !== "ntp" && `clock: ${channel.clock}`,
  ].filter(Boolean);
  return html`
    <footer class="sheet-foot">
      <p class="facts">${facts.join(" · ")}</p>
      <${Copy} label="MQTT topic" text=${topic} />
      <${Copy} label="CoAP resource" text=${`/${channel.id}`} />
    </footer>
  `;
}

function chartOptions({ channel, scale, isState, bounds, onZoom, say, width, height }) {
  const css = getComputedStyle(document.documentElement);
  const colour = (name) => css.getPropertyValue(name).trim();
  const font = `12px ${colour("--font-plain")}`;
  const axis = {
    stroke: colour("--ink-soft"),
    grid: { stroke: colour("--line"), width: 1 },
    ticks: { stroke: colour("--line"), width: 1, size: 4 },
    font,
  };
  const stepped = isState ? uPlot.paths.stepped({ align: 1 }) : undefined;
  const hidden = { points: { show: false }, stroke: "transparent", width: 0, paths: stepped };
  return {
    width,
    height,
    legend: { show: false },
    padding: [10, 12, 0, 0],
    cursor: {
      y: false,
      drag: { x: true, y: false, setScale: false },
      points: { size: (u, series) => (series === MEAN ? 7 : 0), fill: colour("--tide"), stroke: colour("--card") },
    },
    scales: {
      x: { time: true, range: () => bounds() },
      y: { range: isState ? [-0.15, 1.15] : (u, low, high) => padded(low, high, channel, scale) },
    },
    axes: [
      { ...axis, values: timeLabels, space: 64, size: 46 },
      {
        ...axis,
        size: (u, labels) => 18 + 7 * Math.max(3, ...(labels ?? []).map((label) => label.length)),
        splits: isState ? () => [0, 1] : undefined,
        values: (u, splits) =>
          splits.map((split) => (isState ? stateWord(channel, split === 1) : axisNumber(split, splits))),
      },
    ],
    series: [
      {},
      hidden,
      {
        stroke: colour("--tide"),
        width: 1.75,
        paths: stepped,
        points: { show: true, size: 4, stroke: colour("--tide"), fill: colour("--tide"), filter: loneliest },
      },
      hidden,
    ],
    bands: [{ series: [3, 1], fill: colour("--tide-veil") }],
    hooks: {
      setCursor: [say],
      setData: [say],
      ready: [say],
      setSelect: [
        (u) => {
          const { left, width: dragged } = u.select;
          if (dragged < 6) return;
          const from = u.posToVal(left, "x");
          const to = u.posToVal(left + dragged, "x");
          u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
          if (to - from >= SHORTEST_S) onZoom({ from, to });
        },
      ],
    },
  };
}

// Points are drawn only where no line can be: one value alone between two gaps.
function loneliest(u, series, isShown, gaps) {
  const values = u.data[series];
  const alone = [];
  for (let i = 0; i < values.length; i += 1) {
    if (values[i] !== null && (values[i - 1] ?? null) === null && (values[i + 1] ?? null) === null) alone.push(i);
  }
  return alone;
}

// The height is at least a few of the sensor's own steps, so that noise looks like noise.
function padded(low, high, channel, scale) {
  if (low === null || high === null) return [0, 1];
  const digits = scale.digits(high);
  const least = Math.max(8 * 10 ** -digits, Math.abs(high) * 1e-4);
  const span = Math.max(high - low, least);
  const missing = (span - (high - low)) / 2;
  const bottom = low - missing - span * 0.06;
  // What cannot be negative does not get a negative axis.
  return [low >= 0 && bottom < 0 ? 0 : bottom, high + missing + span * 0.06];
}

function axisNumber(split, splits) {
  const step = Math.abs((splits[1] ?? 1) - (splits[0] ?? 0)) || 1;
  return number(split, Math.max(0, Math.min(6, -Math.floor(Math.log10(step) + 1e-9))));
}

function timeLabels(u, splits, axisIndex, space, step) {
  return splits.map((at, i) => {
    const when = new Date(at * 1000);
    const two = (value) => String(value).padStart(2, "0");
    const clock = `${two(when.getHours())}:${two(when.getMinutes())}`;
    const day = dayFormat.format(when);
    if (step >= 86400) return day;
    if (step < 60) return `${clock}:${two(when.getSeconds())}`;
    const isNewDay = i > 0 && new Date(splits[i - 1] * 1000).getDate() !== when.getDate();
    return isNewDay ? `${clock}\n${day}` : clock;
  });
}

function tellPoint(element, u, channel, scale, isState) {
  if (!element) return;
  let i = u.cursor.idx;
  const isPicked = i !== null && i !== undefined && u.data[MEAN][i] !== null && u.data[MEAN][i] !== undefined;
  if (!isPicked) {
    i = u.data[0].length - 1;
    while (i >= 0 && u.data[MEAN][i] === null) i -= 1;
  }
  if (i < 0) {
    element.textContent = " ";
    return;
  }
  const [low, mean, high] = [u.data[1][i], u.data[MEAN][i], u.data[3][i]];
  const digits = scale.digits(mean);
  const unit = scale.label ? ` ${scale.label}` : "";
  const spread = low === high ? "" : `  (${number(low, digits)} to ${number(high, digits)})`;
  const isPlainState = isState && (mean === 0 || mean === 1);
  const said = isPlainState ? stateWord(channel, mean === 1) : `${number(mean, digits)}${unit}${spread}`;
  element.textContent = `${moment(u.data[0][i] * 1000)}   ${said}`;
}

// uPlot listens to a mouse. One finger moves the cursor along the curve; scrolling stays possible.
function scrubByTouch(plot) {
  const over = plot.over;
  const follow = (event) => {
    if (event.touches.length !== 1) return;
    const left = event.touches[0].clientX - over.getBoundingClientRect().left;
    plot.setCursor({ left: Math.max(0, Math.min(over.clientWidth, left)), top: 10 });
  };
  over.addEventListener("touchstart", follow, { passive: true });
  over.addEventListener("touchmove", follow, { passive: true });
  return () => {
    over.removeEventListener("touchstart", follow);
    over.removeEventListener("touchmove", follow);
  };
}

function summary(channel, columns, scale, isState) {
  if (!columns?.t.length) return `Chart of ${channel.title}, empty`;
  if (isState) return `Chart of ${channel.title}; the same values stand in the table after it`;
  const low = Math.min(...columns.min) / scale.per;
  const high = Math.max(...columns.max) / scale.per;
  const said = (value) => `${number(value, scale.digits(value))} ${scale.label}`.trim();
  return `Chart of ${channel.title}, between ${said(low)} and ${said(high)}; the same values stand in the table after it`;
}

function bucketsFor(seconds) {
  // One bucket per two pixels of a wide screen, and never finer than a second.
  return Math.max(1, Math.min(innerWidth > 700 ? 400 : 240, Math.round(seconds)));
}

const SPANS = [
  { seconds: 600, label: "10 min" },
  { seconds: 3600, label: "1 h" },
  { seconds: 86_400, label: "24 h" },
  { seconds: 7 * 86_400, label: "7 d" },
];
const isTouched = matchMedia("(pointer: coarse)").matches;
const MEAN = 2;
const SHORTEST_S = 5;
const LONGEST_S = 366 * 86_400;
const dayFormat = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
