// One way out: whether it is open, what waits on which lane, how fast that gets less, and what is promised.

import { html } from "./html.js";
import { count, duration, number, pick, plain, size } from "./format.js";
import { amount, isBacklog } from "./drain.js";
import { Meter } from "./meter.js";

/** Whether there is a connection to the far side. */
export function isOpen(uplink) {
  return uplink.state === "connected";
}

/** Whether only alarms go out until the month is over. */
export function isSpent(uplink) {
  return uplink.is_budget_exhausted === true;
}

/** Whether readings may go out. */
export function isRaised(uplink) {
  return isOpen(uplink) && !isSpent(uplink);
}

/** The uplink's name, safe and short. */
export function uplinkName(uplink) {
  return plain(uplink.name, 40);
}

/** An uplink's row in the spool's card. */
export function Uplink({ store, uplink }) {
  const mood = moodOf(uplink);
  const drain = store.drains.of(uplink.name);
  const isDraining = isOpen(uplink) && isBacklog(uplink, store.status.spool?.appended_per_s);
  return html`
    <li
      class=${`uplink is-${mood}`}
      data-testid="uplink"
      data-uplink=${uplink.name}
      data-state=${uplink.state}
      data-draining=${isDraining ? "yes" : "no"}
    >
      <div class="uplink-head">
        <${Gate} isRaised=${isRaised(uplink)} />
        <span class="uplink-name">${uplinkName(uplink)}</span>
        <span class=${`state is-${mood}`}><i class="dot" aria-hidden="true"></i>${stateWords(uplink)}</span>
      </div>
      <p class="uplink-target">${plain(uplink.type, 20)} to <bdi>${plain(uplink.target, 80)}</bdi></p>
      ${uplink.detail && !isOpen(uplink) && html`<p class="uplink-detail">${plain(uplink.detail, 200)}</p>`}
      <${Lanes} uplink=${uplink} drain=${drain} isDraining=${isDraining} />
      <${Words} uplink=${uplink} drain=${drain} isDraining=${isDraining} />
      <${Figures} store=${store} uplink=${uplink} drain=${drain} isDraining=${isDraining} />
      <${Budget} uplink=${uplink} />
      <${Delivery} uplink=${uplink} />
    </li>
  `;
}

// Three channels side by side, filled by what waits in them, all to one scale.
function Lanes({ uplink, drain, isDraining }) {
  if (!uplink.lanes) return null;
  const [alarm, told, backfill] = ["alarm", "live", "backfill"].map((name) => amount(uplink.lanes[name]));
  // What was dropped to make room still lies before the live lane's cursor, but does not wait.
  const live = Math.min(told, Math.max(0, amount(uplink.waiting) - backfill));
  const scale = Math.max(drain.most, alarm, live, backfill, SCALE_LEAST);
  const flows = isOpen(uplink) && outPerS(uplink, drain) > 0;
  const isLiveFlowing = flows && !isSpent(uplink);
  return html`
    <dl class=${isRaised(uplink) ? "lanes" : "lanes is-shut"}>
      <${Lane} name="alarm" title="Alarms" waits=${alarm} scale=${scale} flows=${flows && alarm > 0}>
        ${alarm >= ALARMS_COUNTED ? `${count(alarm)} or more` : waitWords(alarm)}
      <//>
      <${Lane} name="live" title="Live" waits=${live} scale=${scale} flows=${isLiveFlowing}>
        ${isLiveFlowing && (backfill > 0 || !isDraining) ? "flowing" : waitWords(live)}
      <//>
      <${Lane} name="backfill" title="Backfill" waits=${backfill} scale=${scale} flows=${isLiveFlowing && backfill > 0}>
        ${waitWords(backfill)}
      <//>
    </dl>
  `;
}

function Lane({ name, title, waits, scale, flows, children }) {
  const width = waits > 0 ? Math.max(1.5, Math.min(1, waits / scale) * 100) : 0;
  return html`
    <div class=${`lane is-${name}${flows ? " is-flowing" : ""}`} data-lane=${name} data-waits=${waits}>
      <dt>${title}</dt>
      <dd>
        <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
          <rect class="lane-bed" width="100" height="10" />
          <rect class="lane-water" x=${100 - width} width=${width} height="10" />
          ${flows && html`<path class="lane-flow" d=${`M${name === "live" ? 0 : 100 - width} 5H100`} />`}
        </svg>
        <span class="lane-words">${children}</span>
      </dd>
    </div>
  `;
}

// What happens to what waits, in a sentence.
function Words({ uplink, drain, isDraining }) {
  const said = drainWords(uplink, drain, isDraining);
  return said && html`<p class="uplink-drain" data-testid="drain">${said}</p>`;
}

function drainWords(uplink, drain, isDraining) {
  if (!isOpen(uplink)) return uplink.waiting > 0 && "What waits is safe on disk, in order.";
  if (!isDraining) return "";
  if (isSpent(uplink)) return "This month’s bytes are used up: readings wait for the next month, alarms go out.";
  if (drain.stillS >= STILL_S) return `The other side has confirmed nothing for ${duration(Math.round(drain.stillS))}.`;
  const { behind, leftS } = drain;
  const isKnown = !Number.isNaN(leftS);
  const left = leftS === Infinity ? "gets no less at this rate" : `is out in about ${duration(Math.ceil(leftS))}`;
  if (!behind) return isKnown ? `What waits ${left}.` : "What waits goes out, oldest first.";
  const rest = isKnown ? `; the rest ${left}` : "";
  const sent = behind.isWhole
    ? `${number(Math.floor((behind.sent / behind.most) * 100))} % of the backfill is out`
    : `${count(behind.sent)} of the backfill sent since this page was opened`;
  return `${sent}${rest}. New readings go out meanwhile.`;
}

function Figures({ store, uplink, drain, isDraining }) {
  const passed = (Date.now() - store.statusAt) / 1000;
  const next = Number.isFinite(uplink.next_try_s) ? Math.max(0, uplink.next_try_s - passed) : NaN;
  const isAway = !isOpen(uplink);
  return html`
    <dl class="figures">
      <div class=${uplink.waiting > 0 && isAway ? "is-marked" : ""}>
        <dt>Waiting</dt><dd data-testid="waiting">${count(uplink.waiting ?? 0)}</dd>
      </div>
      ${isAway || isDraining
        ? html`<div><dt>Oldest</dt><dd>${uplink.waiting ? duration(uplink.oldest_age_s ?? NaN) : "–"}</dd></div>`
        : html`<div><dt>Lag</dt><dd>${duration(uplink.lag_s ?? NaN)}</dd></div>`}
      ${isAway
        ? html`<div><dt>Next try</dt><dd>${nextWords(next)}</dd></div>`
        : html`<div><dt>Going out</dt><dd>${number(outPerS(uplink, drain), 1)}<small>${" "}/s</small></dd></div>`}
      <div><dt>Confirmed</dt><dd>${count(uplink.confirmed ?? 0)}</dd></div>
    </dl>
  `;
}

function Budget({ uplink }) {
  const { monthly_budget_bytes: budget, sent_this_month_bytes: sent } = uplink;
  if (!(budget > 0)) return null;
  return html`
    <div class="uplink-budget" data-testid="budget">
      <${Meter} label="Sent of this month's budget" used=${sent ?? 0} limit=${budget} isBad=${isSpent(uplink)}>
        ${size(sent ?? 0)} sent of ${size(budget)} this month
      <//>
    </div>
  `;
}

function Delivery({ uplink }) {
  const promise = pick(PROMISES, uplink.delivery, null);
  if (!promise) return null;
  return html`
    <p class="uplink-promise" data-testid="delivery"><strong>${promise.name}.</strong>${" "}${promise.says(uplink)}</p>
  `;
}

function Gate({ isRaised }) {
  return html`
    <svg class="gate" viewBox="0 0 24 24" width="24" height="24" aria-hidden="true">
      <path class="gate-frame" d="M5 21V4h14v17" />
      <path class="gate-panel" d=${isRaised ? "M8 7h8M8 10h8" : "M8 10h8M8 14h8M8 18h8"} />
      ${isRaised && html`<path class="gate-water" d="M3 18q3-2 6 0t6 0t6 0" />`}
    </svg>
  `;
}

// Confirmed per second; as the gateway says it until the page has seen for itself.
function outPerS(uplink, drain) {
  return Number.isNaN(drain.outPerS) ? amount(uplink.rate_per_s) : drain.outPerS;
}

function moodOf(uplink) {
  if (isOpen(uplink) && isSpent(uplink)) return "warn";
  return pick({ connected: "ok", connecting: "warn", backoff: "bad" }, uplink.state, "none");
}

function stateWords(uplink) {
  if (isOpen(uplink) && isSpent(uplink)) return "budget used up";
  return uplink.state === "backoff" ? "not reachable" : plain(uplink.state, 24);
}

function waitWords(n) {
  return n > 0 ? `${count(n)} waiting` : "none";
}

function nextWords(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  return seconds < 1 ? "now" : duration(Math.ceil(seconds));
}

const PROMISES = {
  "at-most-once": {
    name: "At most once",
    says: () => "Nothing comes twice; what is under way when the link or the gateway fails is lost.",
  },
  "at-least-once": {
    name: "At least once",
    says: ({ window }) =>
      `Nothing is lost on the way; after a failure ${window > 0 ? `up to ${count(window)} per lane` : "some"} may come twice, with the same id.`,
  },
  "exactly-once": {
    name: "Exactly once",
    says: ({ doubtful }) =>
      doubtful > 0
        ? `Nothing is lost on the way; the far side lost its session, and ${count(doubtful)} that it may have had were sent again.`
        : "On the way nothing is lost and nothing comes twice, over failures of the link and of the gateway too.",
  },
};

/** The gateway counts alarms that wait up to here. */
const ALARMS_COUNTED = 1000;
/** So many waiting fill a lane at least: what is always on its way is no flood. */
const SCALE_LEAST = 200;
/** Without a confirmation for so long, something is stuck; a slow link confirms a batch now and then. */
const STILL_S = 10;
