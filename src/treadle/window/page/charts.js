// uPlot, dressed: each chart is made once and given new data in place.

import { short, steps, whole } from "./format.js";
import { colours, whenThemeChanges } from "./theme.js";

const FONT = "11px system-ui, sans-serif";
const WHOLE = Array.from({ length: 10 }, (_, power) => [1, 2, 5].map((digit) => digit * 10 ** power)).flat();
const MOST_POINTS = 1000;
/** Steps that the charts of an episode show at least, so that their axes do not jump at its start. */
const SHORTEST = 10;
/** Of an episode of which fewer frames than these come there is nothing to draw: whole episodes are drawn instead. */
const FEWEST_FRAMES = 4;
const LAST_EPISODES = 50;
const CURSOR = { y: false, drag: { x: false, y: false }, sync: { key: "learning" } };
const made = new Set();
whenThemeChanges(() => {
  for (const chart of made) chart.plot.redraw(false);
});

const axis = (size, values, space) => ({
  stroke: () => colours.dim,
  grid: { stroke: () => colours.line, width: 1 },
  ticks: { show: false },
  border: { show: false },
  font: FONT,
  gap: 6,
  size,
  space,
  values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : values(tick))),
});

// Of what does not vary too, and of nothing at all, where uPlot's own range would reach to 100.
const range = (_, low, high) => {
  if (low === null) return [0, 1];
  return low === high
    ? [low - 0.1 * Math.abs(low) || -1, high + 0.1 * Math.abs(high) || 1]
    : uPlot.rangeNum(low, high, 0.1, true);
};

/** `series` are uPlot's, without that of the steps; `hooks`, `cursor` and `x`, the scale of the steps, are its too. */
export class Chart {
  constructor(parent, height, series, { hooks = {}, cursor = { show: false }, x = {} } = {}) {
    const options = {
      width: Math.max(parent.clientWidth, 50),
      height,
      padding: [8, 20, 0, 0],
      legend: { show: false },
      cursor,
      hooks,
      scales: { x: { time: false, ...x }, y: { range } },
      axes: [{ ...axis(24, steps, 56), incrs: WHOLE }, axis(wideEnough, tidy, height < 120 ? 20 : 30)],
      series: [{}, ...series],
    };
    this.plot = new uPlot(options, [[], ...series.map(() => [])], parent);
    this.observer = new ResizeObserver(() => {
      if (parent.clientWidth > 0) this.plot.setSize({ width: parent.clientWidth, height });
    });
    this.observer.observe(parent);
    made.add(this);
  }

  show(data) {
    this.plot.setData(data);
  }

  remove() {
    made.delete(this);
    this.observer.disconnect();
    this.plot.destroy();
  }
}

// For the longest number, and alike for most, so that charts below one another begin at one place.
const wideEnough = (_, labels) => Math.max(50, 14 + 6.6 * Math.max(...(labels ?? [""]).map((label) => label.length)));

const tidy = (value) => {
  const size = Math.abs(value);
  if (size >= 1000) return value < 0 ? `−${steps(size)}` : steps(size);
  if (size > 0 && size < 1e-3) return short(value);
  return String(Number(value.toPrecision(6))).replace("-", "−");
};

/** Curves of one episode: points are thinned by half whenever there are too many. At the fastest, when most frames of
 * an episode are left out, those of the last episodes, each as a whole. */
export class EpisodeCurves {
  constructor(returnParent, rewardParent) {
    const points = { show: (plot) => plot.data[1].length === 1 || this.drawsEpisodes, size: 4 };
    const series = (colour) => [
      { stroke: () => colours[colour], width: 1.5, points: { ...points, fill: () => colours[colour] } },
    ];
    const x = { range: (_, low, high) => this.range(low, high) };
    this.forget();
    this.captions = [returnParent, rewardParent].map((parent) => parent.previousElementSibling);
    this.charts = [
      new Chart(returnParent, 96, series("agent"), { x }),
      new Chart(rewardParent, 96, series("accent"), { x }),
    ];
  }

  /** What came from another session has nothing to do with what comes. */
  forget() {
    this.ended = [];
    this.begin(null);
  }

  begin(episode) {
    this.frames = 0;
    this.episode = episode;
    this.t = [];
    this.returns = [];
    this.rewards = [];
  }

  add(frame) {
    const last = this.t[this.t.length - 1];
    if (frame.episode !== this.episode || frame.step < last) this.begin(frame.episode);
    if (frame.step === this.t[this.t.length - 1]) return;
    this.frames++;
    if (frame.ended) this.end(frame);
    this.isFastest = frame.control?.speed === "max";
    if (this.t.length >= MOST_POINTS) {
      const even = (_, i) => i % 2 === 0;
      [this.t, this.returns, this.rewards] = [this.t, this.returns, this.rewards].map((values) => values.filter(even));
    }
    this.t.push(frame.step);
    this.returns.push(frame.return);
    this.rewards.push(frame.reward);
  }

  end({ episode, step, return: sum }) {
    this.ended.push({ episode, step, sum, isSeen: this.frames >= Math.min(FEWEST_FRAMES, step) });
    if (this.ended.length > LAST_EPISODES) this.ended.shift();
  }

  /** Whether most of the last few episodes were too short, as far as they were seen, to be drawn. */
  get drawsEpisodes() {
    const last = this.ended.slice(-5);
    return this.isFastest && last.length > 1 && last.filter(({ isSeen }) => !isSeen).length > last.length / 2;
  }

  range(low, high) {
    if (this.drawsEpisodes) return [low, Math.max(high, low + SHORTEST)];
    return [0, Math.max(high ?? 0, SHORTEST)];
  }

  draw() {
    const { drawsEpisodes } = this;
    this.caption(0, drawsEpisodes ? "return of each episode" : "return so far");
    this.caption(1, drawsEpisodes ? "steps of each episode" : "reward of each step");
    if (drawsEpisodes) {
      const episodes = this.ended.map(({ episode }) => episode);
      this.charts[0].show([episodes, this.ended.map(({ sum }) => sum)]);
      this.charts[1].show([episodes, this.ended.map(({ step }) => step)]);
      return;
    }
    // Around a point that is alone uPlot chooses a range of its own.
    const t = this.t.length === 1 ? [this.t[0], this.t[0] + SHORTEST] : this.t;
    this.charts[0].show([t, this.returns]);
    this.charts[1].show([t, this.rewards]);
  }

  caption(i, text) {
    const caption = this.captions[i];
    if (caption && caption.textContent !== text) caption.textContent = text;
  }
}

/** What a run reported while it learned: its return, each seed thin and the mean bold, and small charts of the rest. */
export class LearningCurves {
  constructor(section, parent, othersParent, legend) {
    this.section = section;
    this.parent = parent;
    this.othersParent = othersParent;
    this.legend = legend;
    this.others = new Map();
    this.seeds = -1;
    this.watched = { seed: 0, checkpoint: null };
  }

  show(message) {
    const { seeds, mean } = message.return;
    const columns = [mean, ...Object.values(message.others)];
    this.section.hidden = columns.every((values) => values.every((value) => value === null));
    if (seeds.length !== this.seeds) this.make(seeds.length);
    this.data = seeds.length > 1 ? [message.steps, ...seeds, mean] : [message.steps, mean];
    this.chart.show(this.data);
    this.explain(null);
    for (const [name, other] of this.others) {
      if (!(name in message.others)) {
        other.chart.remove();
        other.figure.remove();
        this.others.delete(name);
      }
    }
    for (const [name, values] of Object.entries(message.others)) {
      const other = this.others.get(name) ?? this.makeOther(name);
      other.chart.show([message.steps, values]);
    }
  }

  make(seeds) {
    this.chart?.remove();
    this.seeds = seeds;
    const alone = seeds > 1 ? Array.from({ length: seeds }, (_, i) => this.seedSeries(i)) : [];
    const mean = { stroke: () => colours.agent, width: 2.5, spanGaps: true, points: { show: false } };
    this.chart = new Chart(this.parent, 260, [...alone, mean], {
      cursor: { ...CURSOR, points: { show: (_, i) => i === (seeds > 1 ? seeds + 1 : 1), size: 7 } },
      hooks: { draw: [(plot) => this.markCheckpoint(plot)], setCursor: [(plot) => this.explain(plot.cursor.idx)] },
    });
  }

  seedSeries(seed) {
    const chosen = () => this.watched.seed === seed;
    return {
      stroke: () => (chosen() ? colours.accent : colours.muted),
      width: 1,
      spanGaps: true,
      points: { show: false },
    };
  }

  makeOther(name) {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const parent = document.createElement("div");
    figure.append(caption, parent);
    this.othersParent.append(figure);
    const series = [{ stroke: () => colours.agent, width: 1.5, spanGaps: true, points: { show: false } }];
    const explain = (plot) => {
      const values = plot.data[1];
      const value = values[lastKnown(values, plot.cursor.idx ?? undefined)];
      caption.textContent = `${name.replaceAll("_", " ")}: ${short(value)}`;
    };
    const chart = new Chart(parent, 130, series, {
      cursor: { ...CURSOR, points: { size: 6 } },
      hooks: { setCursor: [explain], setData: [explain] },
    });
    const other = { figure, chart };
    this.others.set(name, other);
    return other;
  }

  /** Which seed and checkpoint are being watched. */
  watch(seed, checkpoint) {
    if (seed === this.watched.seed && checkpoint === this.watched.checkpoint) return;
    this.watched = { seed, checkpoint };
    this.chart?.plot.redraw(false);
    if (this.data) this.explain(null);
  }

  markCheckpoint(plot) {
    const { checkpoint } = this.watched;
    if (checkpoint === null || plot.scales.x.min == null) return;
    // The first may lie before anything was reported, the last a little beyond the steps that the run was to take.
    const { min, max } = plot.scales.x;
    const x = Math.round(plot.valToPos(Math.min(Math.max(checkpoint, min), max), "x", true));
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = colours.dim;
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    ctx.restore();
  }

  /** The legend, with the values under the pointer where it is over a chart. */
  explain(index) {
    if (!this.data) return;
    const [x, ...series] = this.data;
    const at = lastKnown(series[series.length - 1], index ?? undefined);
    const mean = series[series.length - 1][at];
    const where = index === null || x.length === 0 ? "at the end" : `at step ${whole(x[at])}`;
    const parts = [
      item("mean", `${this.seeds > 1 ? `mean of ${this.seeds} seeds` : "return"} ${where}: ${short(mean)}`),
    ];
    if (this.seeds > 1) {
      const all = series
        .slice(0, -1)
        .map((values) => values[at])
        .filter(Number.isFinite);
      parts.push(item("seeds", all.length ? `each: ${short(Math.min(...all))} to ${short(Math.max(...all))}` : "each"));
      parts.push(item("watched", `seed ${this.watched.seed}: ${short(series[this.watched.seed]?.[at])}`));
    }
    if (this.watched.checkpoint !== null) parts.push(item("checkpoint", "checkpoint"));
    this.legend.replaceChildren(...parts);
  }
}

// Most things are not reported at every step: where the last report up to here is.
function lastKnown(values, i = values.length - 1) {
  while (i > 0 && values[i] === null) i--;
  return i;
}

function item(kind, text) {
  const span = document.createElement("span");
  const key = document.createElement("i");
  key.className = kind;
  span.append(key, text);
  return span;
}
