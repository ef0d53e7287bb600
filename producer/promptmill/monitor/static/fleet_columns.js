// What the tables of the fleet page show.
"use strict";

// Prompts that wait: a queue's entries may hold many prompts each.
function queued(model) {
  return Math.max(model.queued, model.unfinished - model.in_flight);
}

function isStuck(model) {
  return queued(model) > 0 && model.workers === 0;
}

function queueState(model) {
  if (model.paused) return "paused";
  return isStuck(model) ? "no worker" : "open";
}

function gpuMemory(worker) {
  const total = worker.gpu_memory_total_bytes;
  return total ? `${format.bytes(worker.gpu_memory_used_bytes)} of ${format.bytes(total)}` : undefined;
}

const QUEUE_COLUMNS = [
  { label: "Model", value: (model) => model.name },
  {
    label: "Queued",
    value: queued,
    format: format.count,
    isNumber: true,
    state: (model) => (isStuck(model) ? "is-bad" : ""),
  },
  { label: "Oldest", value: (model) => (model.queued ? model.oldest_s : null), format: format.duration, isNumber: true },
  { label: "In flight", value: (model) => model.in_flight, format: format.count, isNumber: true },
  { label: "In/s", value: (model) => model.arrivals_per_s, format: format.rate, isNumber: true },
  { label: "Out/s", value: (model) => model.completions_per_s, format: format.rate, isNumber: true },
  { label: "Drained in", value: (model) => model.drain_s, format: format.duration, isNumber: true },
  { label: "Tokens/s", value: (model) => model.tokens_per_s, format: format.rate, isNumber: true },
  {
    label: "Workers",
    value: (model) => model.workers,
    format: format.count,
    isNumber: true,
    state: (model) => (isStuck(model) ? "is-bad" : ""),
  },
  {
    label: "State",
    value: queueState,
    isShort: true,
    state: (model) => (model.paused ? "is-warning" : isStuck(model) ? "is-bad" : ""),
  },
];

const WORKER_COLUMNS = [
  { label: "Worker", value: (worker) => worker.name, link: (worker) => pages[worker.name] },
  { label: "Model", value: (worker) => worker.served_name },
  { label: "Device", value: (worker) => worker.device || undefined, isShort: true },
  { label: "Precision", value: (worker) => worker.precision || undefined, isShort: true },
  { label: "Attention", value: (worker) => worker.attention || undefined },
  {
    label: "Batch",
    value: (worker) => `${format.count(worker.running)} of ${format.count(worker.max_batch)}`,
    isNumber: true,
  },
  { label: "Waiting", value: (worker) => worker.waiting, format: format.count, isNumber: true },
  { label: "Tokens/s in", value: (worker) => worker.prompt_tokens_per_s, format: format.rate, isNumber: true },
  { label: "Tokens/s out", value: (worker) => worker.tokens_per_s, format: format.rate, isNumber: true },
  {
    label: "Cache",
    value: (worker) => (worker.cache_tokens ? worker.cache_used : undefined),
    format: format.percent,
    isNumber: true,
  },
  { label: "GPU", value: (worker) => worker.gpu_utilization ?? undefined, format: format.percent, isNumber: true },
  { label: "GPU memory", value: gpuMemory, isNumber: true },
  { label: "Done", value: (worker) => worker.prompts_done, format: format.count, isNumber: true },
  {
    label: "Failed",
    value: (worker) => worker.prompts_failed,
    format: format.count,
    isNumber: true,
    state: (worker) => (worker.prompts_failed ? "is-warning" : ""),
  },
  { label: "Last error", value: (worker) => worker.last_error || undefined, isWide: true },
  { label: "Up", value: (worker) => worker.uptime_s, format: format.duration, isNumber: true },
  { label: "Version", value: (worker) => worker.version, isNumber: true },
];

const LETTER_COLUMNS = [
  { label: "Stopped", value: (letter) => letter.stopped_at, format: format.time, isShort: true },
  { label: "Task", value: (letter) => letter.task },
  { label: "Model", value: (letter) => letter.model },
  { label: "Reason", value: (letter) => letter.reason, isWide: true },
  { label: "Workers lost", value: (letter) => letter.workers.join(", ") },
];
