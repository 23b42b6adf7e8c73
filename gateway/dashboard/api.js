// The gateway's HTTP API: one way to ask, one way to fail.

/** The JSON at `path`, or an Error whose message a person can read. */
export async function getJson(path, signal = undefined) {
  const timeout = AbortSignal.timeout(TIMEOUT_MS);
  const both = signal && AbortSignal.any ? AbortSignal.any([signal, timeout]) : (signal ?? timeout);
  let response;
  try {
    response = await fetch(path, { signal: both, headers: { accept: "application/json" }, cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Error(error.name === "TimeoutError" ? "no answer in time" : "the gateway cannot be reached");
  }
  if (!response.ok) throw new Error(`the gateway answered ${response.status}${await reason(response)}`);
  try {
    return await response.json();
  } catch {
    throw new Error("the gateway's answer is not JSON");
  }
}

/**
 * Calls `task` at once and then again and again, `everyMs` after it ended, slower while it fails,
 * and not at all while the page is hidden. The answer calls it out of turn.
 */
export function poll(task, everyMs) {
  let timer = 0;
  let failures = 0;
  let isRunning = false;
  const run = async () => {
    clearTimeout(timer);
    if (isRunning || document.hidden) return;
    isRunning = true;
    try {
      await task();
      failures = 0;
    } catch {
      // The task tells the page itself; here it only counts for the pace.
      failures += 1;
    }
    isRunning = false;
    timer = setTimeout(run, Math.min(MAX_WAIT_MS, everyMs * 2 ** Math.min(failures, 5)));
  };
  document.addEventListener("visibilitychange", run);
  run();
  return run;
}

async function reason(response) {
  try {
    const text = (await response.text()).slice(0, 200);
    const said = text.startsWith("{") ? JSON.parse(text).error : text.startsWith("<") ? "" : text;
    return said ? `: ${said}` : "";
  } catch {
    return "";
  }
}

const TIMEOUT_MS = 8_000;
const MAX_WAIT_MS = 15_000;
