// Store and forward, the heart of it: what is kept on disk, what waits for which uplink, what was ever lost.

import { html } from "./html.js";
import { useStore } from "./store.js";
import { bytes, count, duration, moment, number, pick, plain } from "./format.js";

/** The spool's card with a row per uplink. */
export function Spool({ store }) {
  useStore(store, "status", "tick");
  const spool = store.status?.spool;
  const uplinks = store.status?.uplinks ?? [];
  return html`
    <section class="card spool" id="spool" data-testid="spool" aria-labelledby="spool-title">
      <h2 id="spool-title">Store and forward</h2>
      ${spool
        ? html`<${Basin} store=${store} spool=${spool} uplinks=${uplinks} />`
        : html`<p class="empty">Not known yet.</p>`}
      ${spool && html`<p class="durability">${durabilityWords(spool)}</p>`}
      ${store.status &&
      (uplinks.length
        ? html`<ul class="uplinks">
            ${uplinks.map((one) => html`<${Uplink} key=${one.name} store=${store} uplink=${one} />`)}
          </ul>`
        : html`<${NoUplink} />`)}
      ${spool && html`<${Gaps} gaps=${spool.gaps ?? []} />`}
    </section>
  `;
}

/** Whether readings flow through this uplink now. */
export function isOpen(uplink) {
  return uplink.state === "connected";
}

/** The uplink's name, safe and short. */
export function uplinkName(uplink) {
  return plain(uplink.name, 40);
}

// The basin: the water is the spool's bytes of its quota, the gate is the way out.
function Basin({ store, spool, uplinks }) {
  const share = spool.quota_bytes > 0 ? Math.min(1, spool.bytes / spool.quota_bytes) : 0;
  const isAnyOpen = uplinks.some(isOpen);
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
        <div><dt>On disk</dt><dd>${bytes(spool.bytes ?? 0)}</dd></div>
        <div><dt>Reaching back</dt><dd>${reach}</dd></div>
        <div><dt>Coming in</dt><dd>${number(spool.appended_per_s ?? 0, 1)}<small>${" "}/s</small></dd></div>
      </dl>
      <${Meter} share=${share} quotaBytes=${spool.quota_bytes ?? 0} />
    </div>
  `;
}

function Meter({ share, quotaBytes }) {
  const shown = Math.round(share * 100);
  const width = share > 0 ? Math.max(0.5, share * 100) : 0;
  return html`
    <div
      class="meter"
      role="meter"
      aria-label="Spool space used, percent"
      aria-valuemin="0"
      aria-valuemax="100"
      aria-valuenow=${shown}
    >
      <svg viewBox="0 0 100 4" preserveAspectRatio="none" aria-hidden="true">
        <rect class="meter-track" width="100" height="4" />
        <rect class=${share > 0.9 ? "meter-fill is-bad" : "meter-fill"} width=${width} height="4" />
      </svg>
      <span>${percent(share)} of ${bytes(quotaBytes)}</span>
    </div>
  `;
}

function Uplink({ store, uplink }) {
  const passed = (Date.now() - store.statusAt) / 1000;
  const mood = pick({ connected: "ok", connecting: "warn", backoff: "bad" }, uplink.state, "none");
  const eta = drainSeconds(uplink, store.status.spool);
  const next = Number.isFinite(uplink.next_try_s) ? Math.max(0, uplink.next_try_s - passed) : NaN;
  return html`
    <li class=${`uplink is-${mood}`} data-testid="uplink" data-uplink=${uplink.name} data-state=${uplink.state}>
      <div class="uplink-head">
        <${Gate} isRaised=${isOpen(uplink)} />
        <span class="uplink-name">${uplinkName(uplink)}</span>
        <span class=${`state is-${mood}`}><i class="dot" aria-hidden="true"></i>${stateWords(uplink.state)}</span>
      </div>
      <p class="uplink-target">${plain(uplink.type, 12)} to <bdi>${plain(uplink.target, 80)}</bdi></p>
      ${uplink.detail && !isOpen(uplink) && html`<p class="uplink-detail">${plain(uplink.detail, 200)}</p>`}
      <dl class="figures">
        <div class=${uplink.waiting > 0 && !isOpen(uplink) ? "is-marked" : ""}>
          <dt>Waiting</dt><dd>${count(uplink.waiting ?? 0)}</dd>
        </div>
        <div><dt>Oldest</dt><dd>${uplink.waiting ? duration(uplink.oldest_age_s ?? NaN) : "–"}</dd></div>
        ${isOpen(uplink)
          ? html`<div><dt>Going out</dt><dd>${number(uplink.rate_per_s ?? 0, 1)}<small>${" "}/s</small></dd></div>
              <div><dt>Lag</dt><dd>${duration(uplink.lag_s ?? NaN)}</dd></div>`
          : html`<div><dt>Confirmed</dt><dd>${count(uplink.confirmed ?? 0)}</dd></div>
              <div><dt>Next try</dt><dd>${nextWords(next)}</dd></div>`}
      </dl>
      ${isOpen(uplink) && eta > 2 && html`<p class="uplink-eta">Everything is out in about ${duration(eta)}.</p>`}
    </li>
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

function NoUplink() {
  return html`
    <div class="uplinks-none">
      <p>
        <strong>No uplink is configured,</strong> and that is a fine way to run: readings are kept on this gateway and
        served on the network around it.
      </p>
      <p>Add an uplink to the configuration, and everything that is still kept goes out too, oldest first.</p>
    </div>
  `;
}

function Gaps({ gaps }) {
  if (!gaps.length) return html`<p class="gaps-none">No gaps: nothing that was measured is missing.</p>`;
  const missing = (gap) => Number(gap.count) || 0;
  const lost = gaps.reduce((sum, gap) => sum + missing(gap), 0);
  return html`
    <div class="gaps" role="group" aria-label="Gaps">
      <p class="gaps-title">
        ${count(lost)} readings are missing, in ${gaps.length} ${gaps.length === 1 ? "gap" : "gaps"}:
      </p>
      <ul>
        ${gaps.slice(-GAPS_SHOWN).reverse().map(
          (gap) => html`
            <li key=${`${gap.from_seq}-${gap.at}`}>
              <span>${plain(gap.reason, 160)}</span>
              <small>
                ${moment(Date.parse(gap.at))}, ${count(missing(gap))} readings (${gap.from_seq}–${gap.to_seq})
              </small>
            </li>
          `,
        )}
      </ul>
      ${gaps.length > GAPS_SHOWN && html`<p><small>and ${gaps.length - GAPS_SHOWN} before these</small></p>`}
    </div>
  `;
}

// How long until nothing waits: only what goes out faster than new readings come in drains.
function drainSeconds(uplink, spool) {
  const net = (uplink.rate_per_s ?? 0) - (spool?.appended_per_s ?? 0);
  return uplink.waiting > 50 && net > 0.5 ? uplink.waiting / net : 0;
}

function durabilityWords(spool) {
  const said = plain(spool.durability, 200);
  return said ? `${said.charAt(0).toUpperCase()}${said.slice(1).replace(/\.?$/, ".")}` : "";
}

function stateWords(state) {
  return state === "backoff" ? "not reachable" : plain(state, 24);
}

function nextWords(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  return seconds < 1 ? "now" : duration(Math.ceil(seconds));
}

function percent(share) {
  if (share > 0 && share < 0.001) return "under 0.1 %";
  return `${number(share * 100, share < 0.1 ? 1 : 0)} %`;
}

const FLOOR_Y = 64;
const BRIM_Y = 16;
const GAPS_SHOWN = 5;
