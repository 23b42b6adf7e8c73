// Store and forward, the heart of it: what is kept on disk, what a power cut would cost, what was ever lost.

import { html } from "./html.js";
import { useStore } from "./store.js";
import { count, duration, number, plain, size } from "./format.js";
import { amount } from "./drain.js";
import { Gaps } from "./gaps.js";
import { Meter } from "./meter.js";
import { Uplink, isRaised } from "./uplink.js";

/** The spool's card with a row per uplink. */
export function Spool({ store }) {
  useStore(store, "status", "tick");
  const spool = store.status?.spool;
  const uplinks = store.status?.uplinks ?? [];
  return html`
    <section class="card spool" id="spool" data-testid="spool" aria-labelledby="spool-title">
      <h2 id="spool-title">Store and forward</h2>
      ${spool
        ? html`<${Durability} spool=${spool} />
            <${Basin} store=${store} spool=${spool} uplinks=${uplinks} />
            <${Wear} spool=${spool} />`
        : html`<p class="empty">Not known yet.</p>`}
      ${store.status &&
      (uplinks.length
        ? html`<ul class="uplinks">
            ${uplinks.map((one) => html`<${Uplink} key=${one.name} store=${store} uplink=${one} />`)}
          </ul>`
        : html`<${NoUplink} />`)}
      ${spool && html`<${Gaps} gaps=${Array.isArray(spool.gaps) ? spool.gaps : []} />`}
    </section>
  `;
}

// The promise that holds at this moment, or that it does not.
function Durability({ spool }) {
  if (spool.refusing) {
    return html`<p class="durability is-bad" data-testid="durability">
      Readings are being lost now: the spool cannot write, ${plain(spool.refusing, 160)}.
    </p>`;
  }
  const said = plain(spool.durability, 240);
  if (!said) return null;
  return html`<p class="durability" data-testid="durability">
    ${said.charAt(0).toUpperCase()}${said.slice(1).replace(/\.?$/, ".")}
  </p>`;
}

// The basin: the water is the spool's bytes of its quota, the gate is the way out.
function Basin({ store, spool, uplinks }) {
  const share = spool.quota_bytes > 0 ? Math.min(1, spool.bytes / spool.quota_bytes) : 0;
  const isAnyOpen = uplinks.some(isRaised);
  // A little water always shows: a basin that holds something is not drawn empty.
  const surface = FLOOR_Y - Math.max(0.06, share) * (FLOOR_Y - BRIM_Y);
  const outside = FLOOR_Y - 9;
  const inside = `M0 ${surface}q10-3 20 0${"t20 0".repeat(9)}h3`;
  const beyond = `M237 ${outside}q10-3 20 0${"t20 0".repeat(3)}h3`;
  const oldest = Date.parse(spool.oldest);
  const reach = Number.isFinite(oldest) ? duration((store.now() - oldest) / 1000) : "–";
  return html`
    <div class="basin">
      <svg viewBox="0 0 320 74" aria-hidden="true" class=${isAnyOpen ? "basin-scene is-open" : "basin-scene"}>
        <path class="basin-water" d=${`${inside}V${FLOOR_Y}H0Z`} />
        <path class="basin-water" d=${`${beyond}V${FLOOR_Y}H237Z`} />
        ${isAnyOpen && html`<path class="basin-water" d=${`M203 ${surface}L237 ${outside}V${FLOOR_Y}H203Z`} />`}
        <path class="basin-surface" d=${`${inside}${isAnyOpen ? `L237 ${outside}` : ""}${beyond}`} />
        ${isAnyOpen && html`<path class="basin-flow" d="M170 59.5H276" />`}
        <rect class="basin-panel" x="205" width="30" y="12" height=${isAnyOpen ? 22 : 52} />
        <path class="basin-post" d="M203 64V10M237 64V10M196 10H244" />
        <path class="basin-floor" d="M0 64.5H320" />
        <path class="basin-quota" d=${`M0 ${BRIM_Y}H196`} />
      </svg>
      <dl class="figures">
        <div><dt>Readings kept</dt><dd>${count(spool.entries ?? 0)}</dd></div>
        <div><dt>Reaching back</dt><dd>${reach}</dd></div>
        <div><dt>Coming in</dt><dd>${number(spool.appended_per_s ?? 0, 1)}<small>${" "}/s</small></dd></div>
        <div><dt>Room for an outage of</dt><dd data-testid="capacity">${hours(capacityS(spool, uplinks))}</dd></div>
      </dl>
      <${Meter} label="Spool space used" used=${spool.bytes ?? 0} limit=${spool.quota_bytes ?? 0} isBad=${share > 0.9}>
        ${size(spool.bytes ?? NaN)} of ${size(spool.quota_bytes ?? NaN)} on disk
      <//>
    </div>
  `;
}

// A card wears out by what is written to it.
function Wear({ spool }) {
  const written = spool.written_today_bytes;
  if (!Number.isFinite(written)) return null;
  const budget = spool.wear_budget_bytes;
  if (!(budget > 0)) return html`<p class="wear" data-testid="wear">${size(written)} written to disk today</p>`;
  const isOver = spool.is_over_wear_budget === true || written > budget;
  return html`
    <div class="wear" data-testid="wear">
      <${Meter} label="Written today of the wear budget" used=${written} limit=${budget} isBad=${isOver}>
        ${size(written)} written today of ${size(budget)}${isOver && ": more than the card's budget"}
      <//>
    </div>
  `;
}

function NoUplink() {
  return html`
    <div class="uplinks-none">
      <p>
        <strong>No uplink is configured,</strong> and that is a fine way to run: readings are kept on this gateway and
        served on the network around it.
      </p>
      <p>Add an uplink to the configuration, and everything that is still kept goes out too.</p>
    </div>
  `;
}

// How long everything that comes in as fast as now finds room. What every uplink has makes room first, so only what
// waits takes some of it; at nine tenths the gateway begins to thin out or to drop.
function capacityS(spool, uplinks) {
  if (Number.isFinite(spool.capacity_s)) return spool.capacity_s;
  const { bytes, entries, quota_bytes: quota, appended_per_s: perS } = spool;
  // An almost empty database is mostly its own pages: it says nothing of what a reading takes.
  if (!(entries >= 2000 && perS > 0 && bytes > 0 && quota > 0)) return NaN;
  const waiting = Math.max(0, ...uplinks.map((one) => amount(one.waiting)));
  return Math.max(0, (0.9 * quota) / (bytes / entries) - waiting) / perS;
}

function hours(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 2 * 3600) return duration(seconds);
  const whole = Math.floor(seconds / 3600);
  return whole < 100 ? `${whole} h` : `${count(Math.floor(whole / 24))} d`;
}

const FLOOR_Y = 64;
const BRIM_Y = 16;
