// The page's wiring: store, MQTT, polling, route; every part's own subject stands in its own file.

import { html, render, useEffect, useState } from "./html.js";
import { Store, useStore } from "./store.js";
import { MqttClient } from "./mqtt.js";
import { getJson, poll } from "./api.js";
import { Header, TideLine } from "./header.js";
import { Readings } from "./tiles.js";
import { ChartDialog } from "./chart.js";
import { Alarms } from "./alarms.js";
import { Spool } from "./spool.js";
import { Health } from "./health.js";
import { Connect } from "./connect.js";

const STATUS_EVERY_MS = 2000;
const CHANNELS_EVERY_MS = 60_000;

const store = new Store({
  onUnknown: () => refreshSoon(),
  onCommand: (topic, text) => mqtt.publish(topic, text),
});

const mqtt = new MqttClient(new URL("./mqtt", location.href).href.replace(/^http/, "ws"), {
  onLink: (state, detail) => {
    store.setLink(state, detail);
    if (state === "live") refreshChannels();
  },
  onMessage: (topic, payload, isRetained) => store.take(topic, payload, isRetained),
});

const refreshStatus = poll(async () => {
  const asked = performance.now();
  try {
    const status = await getJson("./api/v1/status");
    // Another gateway, or a newer one, answers at this address now: its own page knows it better.
    const { gateway, version } = store.status ?? status;
    if (gateway !== status.gateway || version !== status.version) return location.reload();
    store.setStatus(status, performance.now() - asked);
  } catch (error) {
    store.setApiError(error.message);
    throw error;
  }
  mqtt.subscribe(`tidegate/${store.gateway}/#`);
}, STATUS_EVERY_MS);

const refreshChannels = poll(async () => {
  try {
    store.setChannels(await getJson("./api/v1/channels"));
  } catch (error) {
    store.setApiError(error.message);
    throw error;
  }
}, CHANNELS_EVERY_MS);

let refreshTimer = 0;

// A new device announces its channels one after the other: one question answers for all of them.
function refreshSoon() {
  refreshTimer ||= setTimeout(() => {
    refreshTimer = 0;
    refreshChannels();
  }, 1000);
}

mqtt.connect();
addEventListener("online", () => mqtt.probe());
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) mqtt.probe();
});
setInterval(() => {
  if (!document.hidden) store.changed("tick");
  // Without the live link the API still tells the latest values, at a slower pace.
  if (store.link.state !== "live" && Date.now() % 5000 < 1000) refreshChannels();
}, 1000);

function Page() {
  useStore(store, "status", "link");
  const [route, setRoute] = useState(readRoute());
  useEffect(() => {
    const follow = () => setRoute(readRoute());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  useEffect(() => {
    document.title = store.gateway ? `${store.gateway} · Tidegate` : "Tidegate";
  }, [store.gateway]);

  return html`
    <a class="skip" href="#readings">Skip to the readings</a>
    <${Header} store=${store} />
    <main class=${store.link.state === "live" ? "page" : "page is-stale"}>
      <${Alarms} store=${store} />
      <${TideLine} store=${store} />
      <${ApiTrouble} store=${store} />
      <div class="columns">
        <${Readings} store=${store} />
        <aside class="side" aria-label="The gateway itself">
          <${Spool} store=${store} onRetry=${refreshStatus} />
          <${Health} store=${store} />
        </aside>
      </div>
      <${Connect} store=${store} />
    </main>
    <${Footer} store=${store} />
    <${Tabs} />
    ${route.channel && html`<${ChartDialog} key=${route.channel} store=${store} id=${route.channel} />`}
  `;
}

function ApiTrouble() {
  if (!store.apiError) return null;
  const known = store.status ? "What is shown of the spool and of health is the last that was known." : "";
  return html`
    <p class="notice is-bad" role="status">
      <strong>The HTTP API does not answer as it should:</strong> ${store.apiError}. ${known} Trying again.
    </p>
  `;
}

function Footer() {
  return html`
    <footer class="footer">
      <span>Tidegate ${store.status?.version ?? ""}, MIT or Apache-2.0.</span>
      <span>
        Drawn with
        ${" "}<a href="./vendor/preact@11.2.0/LICENSE">Preact</a>,
        ${" "}<a href="./vendor/htm@3.1.1/LICENSE">htm</a> and
        ${" "}<a href="./vendor/uplot@1.6.32/LICENSE">uPlot</a>.
        This page loads nothing from anywhere else.
      </span>
    </footer>
  `;
}

// On a phone the four places of the page are one thumb away.
function Tabs() {
  return html`
    <nav class="tabs" aria-label="Places on this page">
      <a href="#readings">Readings</a>
      <a href="#spool">Spool</a>
      <a href="#health">Health</a>
      <a href="#connect">Connect</a>
    </nav>
  `;
}

// `#/cellar/temperature` opens that channel's chart, so that it can be bookmarked and "back" closes it.
function readRoute() {
  const match = /^#\/([a-z0-9_-]+\/[a-z0-9_-]+)$/.exec(location.hash);
  return { channel: match ? match[1] : "" };
}

render(html`<${Page} />`, document.getElementById("page"));
