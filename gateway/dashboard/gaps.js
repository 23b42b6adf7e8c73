// What is missing from the log, or no longer there in full: why, how much, and which places.

import { html } from "./html.js";
import { count, moment, pick, plain } from "./format.js";

/** The spool's gaps, those of one reason together. */
export function Gaps({ gaps }) {
  if (!gaps.length) return html`<p class="gaps-none">No gaps: nothing that was measured is missing.</p>`;
  const groups = grouped(gaps);
  const lost = groups.filter((group) => !group.isKept);
  return html`
    <div class="gaps" role="group" aria-labelledby="gaps-title" data-testid="gaps">
      <h3 id="gaps-title">${title(lost)}</h3>
      <ul>
        ${groups.map((group) => html`<${Group} key=${group.reason} group=${group} />`)}
      </ul>
    </div>
  `;
}

function Group({ group }) {
  const { reason, gaps, isKept } = group;
  const shown = gaps.slice(0, RANGES_SHOWN);
  const rest = gaps.length - shown.length;
  return html`
    <li class=${isKept ? "gap" : "gap is-lost"} data-reason=${reason}>
      <span><strong>${amount(group)}</strong> ${pick(WORDS, reason, plain(reason, 80))}</span>
      ${gaps.length === 1
        ? html`<small>${range(gaps[0])}</small>`
        : html`<details>
            <summary>in ${count(gaps.length)} ranges, the last ${range(gaps[0])}</summary>
            <ul>
              ${shown.map((gap) => html`<li key=${`${gap.from_seq}-${gap.at}`}>${range(gap)}</li>`)}
              ${rest > 0 && html`<li>and ${count(rest)} before these</li>`}
            </ul>
          </details>`}
    </li>
  `;
}

// The newest first; so are the groups.
function grouped(gaps) {
  const sorted = [...gaps].sort((a, b) => (Date.parse(b.at) || 0) - (Date.parse(a.at) || 0));
  const groups = new Map();
  for (const gap of sorted) {
    const reason = String(gap.reason);
    const group = groups.get(reason) ?? { reason, gaps: [], entries: 0, isExact: true, isKept: KEPT.includes(reason) };
    group.gaps.push(gap);
    if (Number.isFinite(gap.count)) group.entries += gap.count;
    else group.isExact = false;
    groups.set(reason, group);
    if (groups.size >= REASONS_MAX) break;
  }
  return [...groups.values()];
}

function title(lost) {
  if (!lost.length) return "Nothing is lost, but not all goes out as it was measured";
  const entries = lost.reduce((sum, group) => sum + group.entries, 0);
  const isExact = lost.every((group) => group.isExact);
  if (!entries && !isExact) return "Readings are missing";
  const verb = entries === 1 ? "reading is" : "readings are";
  return `${isExact ? "" : "At least "}${count(entries)} ${verb} missing`;
}

function amount({ entries, isExact, isKept }) {
  if (!entries && !isExact) return "Not known how many";
  const noun = entries === 1 ? "reading" : "readings";
  return `${isExact ? "" : "At least "}${count(entries)} ${noun}${isKept ? "" : " lost:"}`;
}

function range(gap) {
  const at = moment(Date.parse(gap.at));
  if (!Number.isFinite(gap.from_seq) || !Number.isFinite(gap.to_seq)) return `${at}, before they had a place`;
  const places = gap.from_seq === gap.to_seq ? `place ${gap.from_seq}` : `places ${gap.from_seq}–${gap.to_seq}`;
  return `${at}, ${places}`;
}

const WORDS = {
  quota: "the size limit was reached while an uplink was away, and the oldest made room.",
  thinned: "are kept as minute means: the size limit came near while an uplink was away.",
  "disk-full": "the disk was full, they could not be written.",
  overload: "more came in than could be written.",
  damage: "the database was found damaged and set aside.",
  "dropped-by-hand": "were given up by hand: an uplink does not send them any more.",
};
/** With these reasons the readings are still here, in one form or another. */
const KEPT = ["thinned", "dropped-by-hand"];
const RANGES_SHOWN = 20;
const REASONS_MAX = 20;
