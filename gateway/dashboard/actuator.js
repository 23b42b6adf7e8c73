// What can be told: a switch, a number or a word, and how the telling went.

import { html, useState } from "./html.js";
import { plain } from "./format.js";

/** The controls of one actuator channel; the outcome is announced and stays beside them. */
export function Actuator({ store, channel }) {
  const isDisabled = store.link.state !== "live" || channel.command?.state === "pending";
  const ask = (value) => store.command(channel, value);
  const type = channel.type ?? typeof channel.value;
  const Control = type === "boolean" ? Switch : type === "number" ? Amount : Word;
  return html`
    <div class="actuator">
      <${Control} channel=${channel} isDisabled=${isDisabled} ask=${ask} />
      <span class=${`outcome is-${channel.command?.state ?? "none"}`} role="status">
        ${channel.command ? plain(channel.command.text, 120) : ""}
      </span>
    </div>
  `;
}

function Switch({ channel, isDisabled, ask }) {
  const isPending = channel.command?.state === "pending";
  // While it is asked, the switch stands where it was told to go; the value above stays what was measured.
  const isOn = isPending ? channel.command.value === true : channel.value === true;
  return html`
    <button
      type="button"
      role="switch"
      class=${`switch ${isPending ? "is-pending" : ""}`}
      aria-checked=${String(isOn)}
      aria-label=${`${channel.title}, switch`}
      disabled=${isDisabled}
      onClick=${() => ask(!isOn)}
    >
      <i aria-hidden="true"></i>
    </button>
  `;
}

function Amount({ channel, isDisabled, ask }) {
  const [typed, setTyped] = useState("");
  const [low, high] = channel.range ?? [null, null];
  const submit = (event) => {
    event.preventDefault();
    if (typed !== "") ask(Number(typed));
  };
  return html`
    <form class="ask" onSubmit=${submit}>
      <input
        type="number"
        step="any"
        min=${low}
        max=${high}
        value=${typed}
        placeholder=${channel.value ?? ""}
        aria-label=${`${channel.title}, new value`}
        onInput=${(event) => setTyped(event.target.value)}
      />
      <button type="submit" disabled=${isDisabled || typed === ""}>Set</button>
    </form>
  `;
}

function Word({ channel, isDisabled, ask }) {
  const [typed, setTyped] = useState("");
  const submit = (event) => {
    event.preventDefault();
    ask(typed);
  };
  return html`
    <form class="ask" onSubmit=${submit}>
      <input
        type="text"
        maxlength="200"
        value=${typed}
        aria-label=${`${channel.title}, new value`}
        onInput=${(event) => setTyped(event.target.value)}
      />
      <button type="submit" disabled=${isDisabled || typed === ""}>Set</button>
    </form>
  `;
}
