// The fleet page: asks for its data every two seconds, and shows it.
"use strict";

const LOOK_EVERY_MS = 2000;

const page = document.getElementById("fleet");
const queues = new FleetTable("fleet-queues", QUEUE_COLUMNS, (model) => model.name, "Nothing is served or queued.");
const workers = new FleetTable("fleet-workers", WORKER_COLUMNS, (worker) => worker.name, "No worker is alive.");
const letters = new FleetTable("fleet-letters", LETTER_COLUMNS, (letter) => letter.task, "None.");
const tokensChart = new FleetChart("chart-tokens", format.rate);
const queuedChart = new FleetChart("chart-queued", format.count);
const lastHour = new FleetHistory();
// Flower's page of each worker.
let pages = {};

function write(id, text) {
  document.getElementById(id).textContent = text;
}

function total(rows, value) {
  return rows.reduce((sum, row) => sum + value(row), 0);
}

function show(data) {
  const models = data.fleet.models;
  pages = data.pages;
  write("fleet-tokens", format.rate(total(models, (model) => model.tokens_per_s)));
  write("fleet-queued", format.count(total(models, queued)));
  write("fleet-running", format.count(total(models, (model) => model.in_flight)));
  write("fleet-dead", format.count(data.dead_letters.count));
  queues.show(models);
  workers.show(data.fleet.workers);
  letters.show(data.dead_letters.newest);
  const values = models.map((model) => [model.name, { tokens_per_s: model.tokens_per_s, queued: queued(model) }]);
  lastHour.add(data.at, Object.fromEntries(values));
  tokensChart.show(lastHour.times, lastHour.lines("tokens_per_s"));
  queuedChart.show(lastHour.times, lastHour.lines("queued"));
}

async function ask(path) {
  // Not relative: with a login in the page's own address a browser would refuse that.
  const response = await fetch(new URL(path, location.origin), { redirect: "manual" });
  const type = response.headers.get("Content-Type") ?? "";
  if (!type.startsWith("application/json")) throw new Error("Logged out: load this page again");
  const data = await response.json();
  if (!response.ok) throw new Error(data.error);
  return data;
}

async function look() {
  if (lastHour.isDue()) lastHour.replace(await ask(page.dataset.historyUrl));
  show(await ask(page.dataset.url));
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
