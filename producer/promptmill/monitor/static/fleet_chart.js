// A line for each model over the last hour. In both themes, and as wide as its place.
"use strict";

const CHART_HEIGHT = 200;
// The least that a chart spans, in seconds.
const SHORTEST_S = 60;
const LINES = ["#2f9e44", "#1c7ed6", "#e8590c", "#9c36b5", "#0c8599", "#e03131", "#f08c00", "#4263eb"];
const LINES_IN_THE_DARK = ["#69db7c", "#74c0fc", "#ffa94d", "#da77f2", "#66d9e8", "#ff8787", "#ffd43b", "#91a7ff"];

// With seconds, where it spans few minutes.
function clock(plot, time) {
  const span = plot.scales.x.max - plot.scales.x.min;
  const parts = { hour: "2-digit", minute: "2-digit", ...(span < 300 ? { second: "2-digit" } : {}), hourCycle: "h23" };
  return new Date(time * 1000).toLocaleTimeString("en", parts);
}

class FleetChart {
  constructor(id, write) {
    this.place = document.getElementById(id);
    this.write = write;
    this.data = { times: [], lines: {} };
    new ResizeObserver(() => this.plot?.setSize(this.size())).observe(this.place);
    new MutationObserver(() => this.draw()).observe(document.documentElement, { attributeFilter: ["data-bs-theme"] });
  }

  size() {
    return { width: this.place.clientWidth, height: CHART_HEIGHT };
  }

  // times: seconds since 1970; lines: model → values, as many as times, null where nothing is known.
  show(times, lines) {
    const hasSameLines = Object.keys(lines).join() === Object.keys(this.data.lines).join();
    this.data = { times, lines };
    if (this.plot && hasSameLines) this.plot.setData([times, ...Object.values(lines)]);
    else this.draw();
  }

  draw() {
    this.plot?.destroy();
    const isDark = document.documentElement.dataset.bsTheme === "dark";
    const style = getComputedStyle(document.documentElement);
    const axis = {
      stroke: style.getPropertyValue("--flower-text-muted"),
      grid: { stroke: style.getPropertyValue("--bs-border-color"), width: 1 },
      ticks: { show: false },
      font: "12px system-ui, sans-serif",
    };
    const colours = isDark ? LINES_IN_THE_DARK : LINES;
    const options = {
      ...this.size(),
      scales: {
        x: { range: (_plot, first, last) => [Math.min(first, last - SHORTEST_S), last] },
        y: { range: (_plot, _low, high) => [0, Math.max(1, high * 1.1)] },
      },
      axes: [{ ...axis, space: 80, values: (plot, times) => times.map((time) => clock(plot, time)) }, { ...axis, size: 60, values: (_plot, values) => values.map(this.write) }],
      series: [
        { value: (_plot, time) => (time === null ? "—" : new Date(time * 1000).toLocaleTimeString()) },
        ...Object.keys(this.data.lines).map((label, index) => ({
          label,
          stroke: colours[index % colours.length],
          width: 2,
          points: { show: false },
          value: (_plot, value) => (value === null || value === undefined ? "—" : this.write(value)),
        })),
      ],
    };
    this.plot = new uPlot(options, [this.data.times, ...Object.values(this.data.lines)], this.place);
  }
}
