// What people have to hear of, at the top of the page while it lasts.

import { html } from "./html.js";
import { useStore } from "./store.js";
import { moment, plain } from "./format.js";

/** The strip of raised alarms; nothing while there are none. */
export function Alarms({ store }) {
  useStore(store, "status", "channels");
  const told = store.status?.alarms;
  const alarms = Array.isArray(told) ? told : [];
  const more = alarms.slice(SHOWN, SHOWN + MORE_SHOWN);
  const row = (alarm) => html`<${Alarm} key=${alarm.name} store=${store} alarm=${alarm} />`;
  // The element stays, so that a screen reader says what comes into it.
  return html`
    <section class=${alarms.length ? "alarms" : "alarms is-empty"} aria-label="Alarms" role="alert" data-testid="alarms">
      ${alarms.length > 0 &&
      html`
        <h2>${alarms.length === 1 ? "Alarm" : `${alarms.length} alarms`}</h2>
        <ul>${alarms.slice(0, SHOWN).map(row)}</ul>
        ${more.length > 0 &&
        html`<details>
          <summary>${more.length} more</summary>
          <ul>${more.map(row)}</ul>
        </details>`}
      `}
    </section>
  `;
}

function Alarm({ store, alarm }) {
  const name = plain(alarm.name, 120);
  const channel = store.channels.get(name.split("/").slice(0, 2).join("/"));
  const since = Date.parse(alarm.since);
  return html`
    <li class="alarm is-bad" data-alarm=${name}>
      <i class="dot" aria-hidden="true"></i>
      <span class="alarm-text">${sentence(alarm.text) || name}</span>
      <small>
        ${channel ? html`<a href=${`#/${channel.id}`}>${name}</a>` : html`<span>${name}</span>`}
        ${" "}since ${Number.isFinite(since) ? moment(since) : "before the time was known"}
      </small>
    </li>
  `;
}

function sentence(text) {
  const said = plain(text, 240);
  // A channel's name stays as it is written.
  return /^[^ ]*\//.test(said) ? said : said.charAt(0).toUpperCase() + said.slice(1);
}

const SHOWN = 4;
// The gateway bounds how many there are; the page bounds what it draws.
const MORE_SHOWN = 100;
