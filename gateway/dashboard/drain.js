// How a backlog goes down, from what the gateway tells every few seconds. Pure: no clock, no network, no drawing.
// Measured here and not taken from a told rate: what counts is how fast it gets less while new readings come in.

/** The uplinks' backlogs over the last polls. */
export class Drains {
  #kept = new Map();

  /** Takes a new answer of the status API at `atMs`; uplinks it does not name are forgotten. */
  take(uplinks, atMs) {
    const before = this.#kept;
    this.#kept = new Map();
    for (const uplink of uplinks.slice(0, UPLINKS_MAX)) {
      this.#kept.set(uplink.name, followed(before.get(uplink.name), uplink, atMs));
    }
  }

  /**
   * The backlog of one uplink:
   * `most`: the most that waited since there was nothing to speak of;
   * `leftS`: seconds until nothing waits, as fast as it goes now; Infinity when it gets no less, NaN when that is not
   * known yet;
   * `outPerS`: confirmed per second lately, NaN when that is not known yet;
   * `stillS`: for how many seconds nothing was confirmed although something waits;
   * `behind`: of what was left to the backfill lane, `most` and how much of it is `sent`, and whether that
   * `isWhole`, or only what this page has seen of it.
   */
  of(name) {
    const drain = this.#kept.get(name);
    if (!drain) return { most: 0, leftS: NaN, outPerS: NaN, stillS: 0, behind: null };
    const { samples, most, behind, movedAt } = drain;
    const first = samples[0];
    const last = samples[samples.length - 1];
    const passedS = (last.atMs - first.atMs) / 1000;
    const lately = samples.find((one) => last.atMs - one.atMs <= LATELY_MS);
    const latelyS = (last.atMs - lately.atMs) / 1000;
    const perS = (first.waiting - last.waiting) / passedS;
    return {
      most,
      leftS: passedS < SHORTEST_S ? NaN : perS > 0 ? last.waiting / perS : Infinity,
      outPerS: latelyS < SHORTEST_S ? NaN : (last.confirmed - lately.confirmed) / latelyS,
      stillS: last.waiting > 0 ? (last.atMs - movedAt) / 1000 : 0,
      behind: behind && { most: behind.most, sent: behind.most - last.backfill, isWhole: behind.isWhole },
    };
  }
}

/** Whether so much waits that it is a backlog: a second's worth or two is always on its way. */
export function isBacklog(uplink, appendedPerS) {
  return amount(uplink.lanes?.backfill) > 0 || amount(uplink.waiting) > Math.max(50, 5 * amount(appendedPerS));
}

/** What was told, if it is an amount. */
export function amount(told) {
  return Number.isFinite(told) && told > 0 ? told : 0;
}

function followed(before, uplink, atMs) {
  const sample = {
    atMs,
    state: uplink.state,
    waiting: amount(uplink.waiting),
    backfill: amount(uplink.lanes?.backfill),
    confirmed: amount(uplink.confirmed),
  };
  const last = before?.samples[before.samples.length - 1];
  // Another state, or a gateway that counts from the beginning again: what was before tells nothing of what follows.
  const goesOn = last && last.state === sample.state && last.confirmed <= sample.confirmed;
  const samples = goesOn ? [...before.samples.filter((one) => atMs - one.atMs <= LOOK_BACK_MS), sample] : [sample];
  const hasMoved = !goesOn || sample.confirmed > last.confirmed || last.waiting === 0;
  return {
    samples,
    most: mostOf(before?.most ?? 0, sample.waiting),
    behind: behindOf(before, last, sample),
    movedAt: hasMoved ? atMs : before.movedAt,
  };
}

// Something is always on its way: a backlog is over when a fiftieth of it is left.
function mostOf(most, waiting) {
  return waiting > most / 50 ? Math.max(most, waiting) : waiting;
}

function behindOf(before, last, sample) {
  if (!sample.backfill) return null;
  // Who comes when it is under way already does not know how much it was.
  const known = before?.behind ?? { most: 0, isWhole: Boolean(last) };
  return { most: Math.max(known.most, sample.backfill), isWhole: known.isWhole };
}

const UPLINKS_MAX = 50;
const LOOK_BACK_MS = 20_000;
const LATELY_MS = 7000;
/** Two polls right after one another say nothing of a rate. */
const SHORTEST_S = 1.5;
