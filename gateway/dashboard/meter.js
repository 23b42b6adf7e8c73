// A bar that fills: how much of what there is has been used, and in words beside it.

import { html } from "./html.js";

/** `used` of `limit`, named `label` for who cannot see it; the children say it in words. */
export function Meter({ label, used, limit, isBad = false, children }) {
  const share = limit > 0 ? Math.min(1, Math.max(0, used / limit)) : 0;
  // What is there at all is seen.
  const width = share > 0 ? Math.max(1, share * 100) : 0;
  return html`
    <div class="meter">
      <svg
        viewBox="0 0 100 4"
        preserveAspectRatio="none"
        role="meter"
        aria-label=${`${label}, percent`}
        aria-valuemin="0"
        aria-valuemax="100"
        aria-valuenow=${Math.round(share * 100)}
      >
        <rect class="meter-track" width="100" height="4" />
        <rect class=${isBad ? "meter-fill is-bad" : "meter-fill"} width=${width} height="4" />
      </svg>
      <span>${children}</span>
    </div>
  `;
}
