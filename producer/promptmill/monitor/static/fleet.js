// The fleet page: asks for its data every two seconds, and shows it.
"use strict";

const LOOK_EVERY_MS = 2000;
// What was seen since the page was opened: an hour of it.
const KEPT_LOOKS = 1800;

const page = document.getElementById("fleet");
let pages = {};

const queues = new FleetTable(
  "fleet-queues",
  [
    { label: "Model", value: (model) => model.name },
    { label: "Queued", value: (model) => model.queued, format: format.count, isNumber: true, state: isStuck },
    { label: "Oldest", value: (model) => (model.queued ? model.oldest_s : null), format: format.duration, isNumber: true },
    { label: "Running", value: (model) => model.running, format: format.count, isNumber: true },
    { label: "Workers", value: (model) => model.workers, format: format.count, isNumber: true, state: isStuck },
    { label: "Tokens/s", value: (model) => model.tokens_per_s, format: format.rate, isNumber: true },
    {
      label: "State",
      value: (model) => (model.paused ? "paused" : isStuck(model) ? "no worker" : "open"),
      isShort: true,
      state: (model) => (model.paused ? "is-warning" : isStuck(model)),
    },
  ],
  (model) => model.name,
  "Nothing is served, and nothing is queued.",
);

const workers = new FleetTable(
  "fleet-workers",
  [
    { label: "Worker", value: (worker) => worker.name, link: (worker) => pages[worker.name] },
    { label: "Model", value: (worker) => worker.served_name },
    { label: "Device", value: (worker) => worker.device || null, isShort: true },
    { label: "Precision", value: (worker) => worker.precision || null, isShort: true },
    { label: "Running", value: (worker) => worker.running, format: format.count, isNumber: true },
    { label: "Waiting", value: (worker) => worker.waiting, format: format.count, isNumber: true },
    { label: "Tokens/s", value: (worker) => worker.tokens_per_s, format: format.rate, isNumber: true },
    { label: "Done", value: (worker) => worker.prompts_done, format: format.count, isNumber: true },
    {
      label: "Failed",
      value: (worker) => worker.prompts_failed,
      format: format.count,
      isNumber: true,
      state: (worker) => (worker.prompts_failed ? "is-warning" : ""),
    },
    { label: "Up", value: (worker) => worker.uptime_s, format: format.duration, isNumber: true },
    { label: "Version", value: (worker) => worker.version, isShort: true },
  ],
  (worker) => worker.name,
  "No worker is alive.",
);

const letters = new FleetTable(
  "fleet-letters",
  [
    { label: "Stopped", value: (letter) => letter.stopped_at, format: format.time, isShort: true },
    { label: "Task", value: (letter) => letter.task },
    { label: "Model", value: (letter) => letter.model },
    { label: "Reason", value: (letter) => letter.reason },
    { label: "Workers lost", value: (letter) => letter.workers.join(", ") },
  ],
  (letter) => letter.task,
  "None.",
);

const tokensChart = new FleetChart("chart-tokens", format.rate);
const queuedChart = new FleetChart("chart-queued", format.count);
const seen = { times: [], looks: [] };

function isStuck(model) {
  return model.queued > 0 && model.workers === 0 ? "is-bad" : "";
}

function total(rows, name) {
  return rows.reduce((sum, row) => sum + row[name], 0);
}

function write(id, text) {
  document.getElementById(id).textContent = text;
}

function showCharts(models) {
  seen.times.push(Date.now() / 1000);
  seen.looks.push(new Map(models.map((model) => [model.name, model])));
  if (seen.times.length > KEPT_LOOKS) {
    seen.times.shift();
    seen.looks.shift();
  }
  const names = models.map((model) => model.name);
  const lines = (field) =>
    Object.fromEntries(names.map((name) => [name, seen.looks.map((look) => look.get(name)?.[field] ?? null)]));
  tokensChart.show(seen.times, lines("tokens_per_s"));
  queuedChart.show(seen.times, lines("queued"));
}

function show(data) {
  const { models, workers: records } = data.fleet;
  pages = data.pages;
  write("fleet-tokens", format.rate(total(models, "tokens_per_s")));
  write("fleet-queued", format.count(total(models, "queued")));
  write("fleet-running", format.count(total(models, "running")));
  write("fleet-dead", format.count(data.dead_letters.count));
  queues.show(models);
  workers.show(records);
  letters.show(data.dead_letters.newest);
  showCharts(models);
}

async function look() {
  // Not relative: with a login in the page's own address a browser would refuse that.
  const response = await fetch(new URL(page.dataset.url, location.origin), { credentials: "same-origin" });
  const type = response.headers.get("Content-Type") ?? "";
  if (!type.startsWith("application/json")) throw new Error("Logged out: load this page again");
  const data = await response.json();
  if (!response.ok) throw new Error(data.error);
  show(data);
}

function showState(isLive, text) {
  document.getElementById("fleet-live").classList.toggle("status-dot-live", isLive);
  page.classList.toggle("is-stale", !isLive);
  if (document.getElementById("fleet-status").textContent !== text) write("fleet-status", text);
}

async function lookAgain() {
  if (!document.hidden) {
    try {
      await look();
      showState(true, "Live");
    } catch (error) {
      showState(false, error instanceof TypeError ? "The monitor does not answer" : error.message);
    }
  }
  setTimeout(lookAgain, LOOK_EVERY_MS);
}

lookAgain();
