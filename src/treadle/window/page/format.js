// Numbers as people read them.

const grouped = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });

export const whole = (x) => (x === null || x === undefined ? "–" : grouped.format(x));

/** Few digits, and as many decimals for all numbers of one size, so that columns do not jump. */
export function short(x) {
  if (x === null || x === undefined || !Number.isFinite(x)) return "–";
  const size = Math.abs(x);
  if (size >= 1e6 || (size > 0 && size < 5e-4)) return minus(x.toExponential(1));
  if (size >= 1000) return minus(grouped.format(x));
  return minus(x.toFixed(size >= 100 ? 1 : size >= 10 ? 2 : 3));
}

/** For numbers that go through zero all the time: what is next to nothing is zero. */
export const fixed = (x) => short(Math.abs(x) < 5e-4 ? 0 : x);

/** 12,000 as 12k: for axes. */
export function steps(x) {
  if (x >= 1e6) return `${trimmed(x / 1e6)}M`;
  return x >= 1e3 ? `${trimmed(x / 1e3)}k` : trimmed(x);
}

/** How far a run is, which may end a little beyond what it was to take. */
export function progress({ step, total_timesteps: total }) {
  return step >= total ? `${whole(step)} steps` : `step ${whole(step)} of ${whole(total)}`;
}

export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "";
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return seconds < 3600 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

const trimmed = (x) => String(Number(x.toFixed(2)));
const minus = (text) => text.replaceAll("-", "−");
