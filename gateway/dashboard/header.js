// The top of the page: whose gateway this is, whether what one sees is live, and how the tide stands.

import { html, useState } from "./html.js";
import { useStore } from "./store.js";
import { count, duration, pick, plain } from "./format.js";
import { isBacklog } from "./drain.js";
import { isOpen, isSpent, uplinkName } from "./uplink.js";

/** Gateway name and the chips: link, health, clock, theme. */
export function Header({ store }) {
  useStore(store, "status", "link");
  return html`
    <header class="header">
      <a class="brand" href="#readings">
        <img src="./logo.svg" alt="" width="34" height="34" />
        <span class="brand-words">
          <span class="brand-product">Tidegate</span>
          <h1 class="brand-name">${plain(store.gateway, 40) || "…"}</h1>
        </span>
      </a>
      <div class="chips">
        <${LinkChip} store=${store} />
        <${HealthChip} store=${store} />
        <${ClockChip} store=${store} />
        <${ThemeButton} />
      </div>
    </header>
    <p class="visually-hidden" aria-live="polite">${linkSentence(store.link)}</p>
  `;
}

/** One line under the header: is the gate to the cloud open, and what waits behind it. */
export function TideLine({ store }) {
  useStore(store, "status", "tick");
  const told = tide(store);
  if (!told) return null;
  return html`
    <a class=${`tideline is-${told.mood}`} href="#spool">
      <svg class="tideline-wave" viewBox="0 0 48 12" aria-hidden="true">
        <path d="M0 6c6-5 10-5 16 0s10 5 16 0 10-5 16 0" />
      </svg>
      <span>${told.text}</span>
    </a>
  `;
}

function LinkChip({ store }) {
  useStore(store, "link", "tick");
  const { state, since, detail } = store.link;
  const isLive = state === "live";
  const word = isLive ? "live" : state === "connecting" ? "connecting" : "reconnecting";
  const isGone = isLive && store.gatewayState === "offline";
  return html`
    <span class=${`chip ${isLive ? "is-ok" : "is-warn"}`} title=${detail || null}>
      <i class="dot" aria-hidden="true"></i><span data-testid="live">${word}</span>
      ${!isLive && state === "lost" && html`<span class="chip-more">for ${duration(Math.round((Date.now() - since) / 1000))}</span>`}
    </span>
    ${isGone && html`<span class="chip is-bad"><i class="dot" aria-hidden="true"></i>gateway offline</span>`}
  `;
}

function HealthChip({ store }) {
  const health = store.status?.health;
  if (store.apiError) {
    return html`<a class="chip is-warn" href="#health"><i class="dot" aria-hidden="true"></i>health unknown</a>`;
  }
  if (!health) return null;
  const problems = Array.isArray(health.problems) ? health.problems.length : 0;
  const isWell = health.ok && problems === 0;
  const words = isWell ? "all well" : problems === 1 ? "1 problem" : problems ? `${problems} problems` : "not well";
  return html`
    <a class=${`chip ${isWell ? "is-ok" : "is-bad"}`} href="#health" data-testid="health-chip">
      <i class="dot" aria-hidden="true"></i>${words}
    </a>
  `;
}

function ClockChip({ store }) {
  const quality = store.status?.time?.quality;
  if (!quality || quality === "ntp") return null;
  const words = { rtc: "clock by its own battery", file: "no time server yet", none: "clock not set" };
  const meaning =
    quality === "rtc"
      ? "The time comes from the real-time clock; no time server has been reached yet."
      : "No time server has been reached: readings are kept in order, their wall time follows later.";
  return html`
    <span class=${`chip ${quality === "rtc" ? "" : "is-warn"}`} title=${meaning}>
      <i class="dot" aria-hidden="true"></i>${pick(words, quality, "clock not synchronised")}
    </span>
  `;
}

function ThemeButton() {
  const [choice, setChoice] = useState(globalThis.theme.choice);
  const next = { auto: "dark", dark: "light", light: "auto" }[choice];
  const choose = () => {
    globalThis.theme.choose(next);
    setChoice(next);
  };
  const drawings = {
    auto: html`<circle cx="8" cy="8" r="6" /><path class="fill" d="M8 2a6 6 0 0 1 0 12z" />`,
    dark: html`<path class="fill" d="M13 10A6 6 0 0 1 6 3a6 6 0 1 0 7 7z" />`,
    light: html`<circle class="fill" cx="8" cy="8" r="3" />
      <path d="M8 .8v2M8 13.2v2M.8 8h2M13.2 8h2M3 3l1.4 1.4M11.6 11.6 13 13M3 13l1.4-1.4M11.6 4.4 13 3" />`,
  };
  return html`
    <button
      type="button"
      class="theme"
      onClick=${choose}
      aria-label=${`Colours: ${choice}. Switch to ${next}.`}
      title=${`Colours: ${choice}`}
    >
      <svg viewBox="0 0 16 16" width="18" height="18" aria-hidden="true">${drawings[choice]}</svg>
    </button>
  `;
}

// What a person wants to know first: is anything being lost, is it on its way, how long yet.
function tide(store) {
  const status = store.status;
  // What was true before the API fell silent may not be true any more.
  if (!status || store.apiError) return null;
  const uplinks = status.uplinks ?? [];
  if (!uplinks.length) {
    const kept = status.spool?.entries ?? 0;
    return { mood: "still", text: `Readings stay on this gateway: ${count(kept)} kept, no uplink configured.` };
  }
  const passed = (Date.now() - store.statusAt) / 1000;
  const shut = uplinks.filter((one) => !isOpen(one));
  if (shut.length) {
    const waiting = Math.max(...shut.map((one) => one.waiting ?? 0));
    const tries = shut.map((one) => one.next_try_s).filter(Number.isFinite);
    const next = tries.length ? Math.max(0, Math.min(...tries) - passed) : NaN;
    const when = Number.isFinite(next) ? ` Next try ${next < 1 ? "now" : `in ${duration(Math.ceil(next))}`}.` : "";
    const names = `Uplink${shut.length > 1 ? "s" : ""} ${shut.map(uplinkName).join(" and ")}`;
    return { mood: "shut", text: `${names} cannot be reached. ${count(waiting)} readings wait safely on disk.${when}` };
  }
  const names = uplinks.map(uplinkName).join(" and ");
  const backlogs = uplinks.filter((one) => isBacklog(one, status.spool?.appended_per_s));
  if (!backlogs.length) {
    return { mood: "open", text: `The gate is open: ${names} ${uplinks.length > 1 ? "have" : "has"} every reading.` };
  }
  const fullest = backlogs.reduce((most, one) => (one.waiting > most.waiting ? one : most));
  const [name, waiting] = [uplinkName(fullest), count(fullest.waiting ?? 0)];
  if (isSpent(fullest)) {
    return { mood: "shut", text: `${name} has used up this month’s bytes: ${waiting} readings wait, alarms go out.` };
  }
  const { leftS } = store.drains.of(fullest.name);
  const left = Number.isFinite(leftS) ? `, about ${duration(Math.ceil(leftS))} more` : "";
  return { mood: "draining", text: `Draining to ${name}: ${waiting} readings still wait${left}.` };
}

function linkSentence(link) {
  if (link.state === "live") return "Live: readings arrive as they are measured.";
  return link.state === "lost" ? "The live connection is lost; showing the last values, reconnecting." : "";
}
