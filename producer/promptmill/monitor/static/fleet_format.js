// How numbers are written.
"use strict";

const format = {
  count: (value) => Math.round(value).toLocaleString("en"),

  rate: (value) => (value >= 10 ? Math.round(value).toLocaleString("en") : value.toFixed(1)),

  percent: (value) => `${Math.round(value * 100)} %`,

  bytes(value) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (value >= 1024 && unit < units.length - 1) {
      value /= 1024;
      unit += 1;
    }
    return `${value >= 10 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
  },

  duration(seconds) {
    if (seconds < 60) return `${Math.round(seconds)} s`;
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.round((seconds % 3600) / 60)} min`;
    return `${Math.floor(seconds / 86400)} d ${Math.round((seconds % 86400) / 3600)} h`;
  },

  time: (seconds) => new Date(seconds * 1000).toLocaleString(),
};
