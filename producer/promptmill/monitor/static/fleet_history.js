// The last hour for the charts: the points that the broker keeps, a point each twenty seconds, and what was seen since.
"use strict";

const POINTS_EVERY_MS = 10000;

class FleetHistory {
  constructor() {
    this.kept = { times: [], models: {} };
    this.looks = [];
    this.askedAt = -Infinity;
  }

  isDue() {
    return performance.now() > this.askedAt + POINTS_EVERY_MS;
  }

  replace(kept) {
    this.askedAt = performance.now();
    this.kept = kept;
    const last = kept.times.at(-1) ?? -Infinity;
    this.looks = this.looks.filter((look) => look.at > last);
  }

  // values: model → {tokens_per_s, queued}.
  add(at, values) {
    if (at > (this.kept.times.at(-1) ?? -Infinity)) this.looks.push({ at, values });
    if (this.looks.length > 1800) this.looks.shift();
  }

  get times() {
    return [...this.kept.times, ...this.looks.map((look) => look.at)];
  }

  // Model → values, as many as there are times.
  lines(kind) {
    const names = new Set([...Object.keys(this.kept.models), ...this.looks.flatMap((look) => Object.keys(look.values))]);
    const before = this.kept.times.map(() => null);
    return Object.fromEntries(
      [...names].sort().map((name) => [
        name,
        [...(this.kept.models[name]?.[kind] ?? before), ...this.looks.map((look) => look.values[name]?.[kind] ?? null)],
      ]),
    );
  }
}
