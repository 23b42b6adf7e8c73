// A channel's past as columns for the chart. Pure: no clock, no network, no drawing.

/** The four columns uPlot wants: seconds since 1970, and lowest, mean and highest value per bucket. */
export class Columns {
  t = [];
  min = [];
  mean = [];
  max = [];
  /** Width of one bucket in seconds. */
  step = 1;
  #counts = [];

  /** Takes the API's answer; rows that are not numbers are left out. */
  static from(told) {
    const columns = new Columns();
    columns.step = Number(told.step) > 0 ? Number(told.step) : 1;
    const times = Array.isArray(told.t) ? told.t.slice(0, POINTS_MAX) : [];
    times.forEach((at, i) => {
      const row = [at, told.min?.[i], told.mean?.[i], told.max?.[i]].map(Number);
      if (row.every(Number.isFinite)) columns.#push(row, Number(told.n?.[i]) || 1);
    });
    return columns;
  }

  /** Adds a live value: into the last bucket while that lasts, else as a new one. */
  append(at, value) {
    const last = this.t.length - 1;
    if (last >= 0 && at < this.t[last] + this.step) {
      const n = this.#counts[last];
      this.min[last] = Math.min(this.min[last], value);
      this.max[last] = Math.max(this.max[last], value);
      this.mean[last] = (this.mean[last] * n + value) / (n + 1);
      this.#counts[last] = n + 1;
      return;
    }
    this.#push([at, value, value, value], 1);
  }

  /** Forgets what is older than `from`, seconds since 1970. */
  forgetBefore(from) {
    const keep = this.t.findIndex((at) => at >= from);
    if (keep <= 0) return;
    for (const column of [this.t, this.min, this.mean, this.max, this.#counts]) column.splice(0, keep);
  }

  /**
   * The columns divided by `per`, with an empty row wherever the distance is more than the channel's
   * own rhythm, or `silence` seconds, explains: a line across a gap would claim that something was measured there.
   */
  drawn(per, silence = 0) {
    const longest = Math.max(this.step * 1.5, this.rhythm() * 3, silence);
    const rows = [[], [], [], []];
    this.t.forEach((at, i) => {
      const before = this.t[i - 1];
      if (i > 0 && at - before > longest) {
        rows[0].push(before + (at - before) / 2);
        for (const row of rows.slice(1)) row.push(null);
      }
      rows[0].push(at);
      rows[1].push(this.min[i] / per);
      rows[2].push(this.mean[i] / per);
      rows[3].push(this.max[i] / per);
    });
    return rows;
  }

  /** The usual distance of two points, in seconds. */
  rhythm() {
    const apart = this.t.slice(1).map((at, i) => at - this.t[i]);
    apart.sort((a, b) => a - b);
    return apart.length ? apart[Math.floor(apart.length / 2)] : 0;
  }

  /** At most `rows` rows spread over the whole, for the table: `{t, min, mean, max}`. */
  sample(rows) {
    const step = Math.max(1, Math.ceil(this.t.length / rows));
    const picked = [];
    for (let i = 0; i < this.t.length; i += step) picked.push(i);
    const last = this.t.length - 1;
    if (last >= 0 && picked[picked.length - 1] !== last) picked.push(last);
    return picked.map((i) => ({ t: this.t[i], min: this.min[i], mean: this.mean[i], max: this.max[i] }));
  }

  #push([at, low, middle, high], n) {
    // Time only goes forward in a chart; an answer that disagrees is not drawn.
    if (this.t.length && at <= this.t[this.t.length - 1]) return;
    this.t.push(at);
    this.min.push(low);
    this.mean.push(middle);
    this.max.push(high);
    this.#counts.push(n);
  }
}

const POINTS_MAX = 5000;
