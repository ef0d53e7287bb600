"""What a worker tells Prometheus; the names follow vLLM's, with our prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from promptmill.errors import EngineError, InvalidRequestError, PromptmillError, PromptTooLongError, TaskFailedError
from promptmill.fleet import WorkerRecord
from promptmill.protocol import FinishReason, GenerationResult

__all__ = ["WorkerMetrics"]

#: Upper bounds, in seconds: of a wait in a queue that may be long, of a first token, of a further one, of all together.
QUEUE_S = (0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400)
FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKEN_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
END_TO_END_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600, 14_400)
#: Upper bounds of numbers of tokens.
TOKENS = (1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 131_072)

#: What a prompt may end in on a worker, success apart.
ERRORS = (EngineError, InvalidRequestError, PromptTooLongError, TaskFailedError)


class WorkerMetrics:
    """Counts each answer, and tells what the worker's record says when it is asked. Thread-safe.

    Args:
        record: Tells the worker's record of now.
        model_name: The served name, which is a label of everything but the process's own figures.
    """

    def __init__(self, record: Callable[[], WorkerRecord], model_name: str) -> None:
        self._registry = CollectorRegistry()
        for collector in (PROCESS_COLLECTOR, PLATFORM_COLLECTOR, GC_COLLECTOR):
            self._registry.register(collector)
        self._registry.register(_RecordCollector(record, model_name))
        self._model_name = model_name
        self._succeeded = self._counter("request_success", "Prompts that were answered.", "finished_reason")
        self._failed = self._counter("request_failure", "Prompts that ended in an error.", "error_type")
        self._queue_s = self._histogram("request_queue_time_seconds", "From submission into an engine.", QUEUE_S)
        self._first_s = self._histogram("time_to_first_token_seconds", "From there to the first token.", FIRST_TOKEN_S)
        self._token_s = self._histogram(
            "request_time_per_output_token_seconds", "From one token to the next, a prompt's average.", TOKEN_S
        )
        self._all_s = self._histogram("e2e_request_latency_seconds", "From submission to the answer.", END_TO_END_S)
        self._read = self._histogram("request_prompt_tokens", "Tokens of a prompt.", TOKENS)
        self._made = self._histogram("request_generation_tokens", "Generated tokens of a prompt.", TOKENS)
        self._begin_at_zero()

    def count(self, answer: GenerationResult | PromptmillError, queued_s: float) -> None:
        """Counts an answered prompt.

        Args:
            answer: What came of it.
            queued_s: From its submission until it went into the engine, in seconds.
        """
        if isinstance(answer, PromptmillError):
            self._failed.labels(self._model_name, type(answer).__name__).inc()
            return
        timings, usage = answer.timings, answer.usage
        self._succeeded.labels(self._model_name, answer.finish_reason).inc()
        self._queue_s.observe(queued_s)
        self._first_s.observe(timings.time_to_first_token_s)
        if usage.completion_tokens > 1:
            further_s = timings.generation_s - timings.time_to_first_token_s
            self._token_s.observe(max(0.0, further_s) / (usage.completion_tokens - 1))
        self._all_s.observe(queued_s + timings.generation_s)
        self._read.observe(usage.prompt_tokens)
        self._made.observe(usage.completion_tokens)

    def page(self) -> bytes:
        """All of it in Prometheus's text format."""
        return generate_latest(self._registry)

    def _begin_at_zero(self) -> None:
        # A series that appears with its first event hides that event from rate(); and without a single success an alert
        # that compares failures with successes would compare them with nothing.
        for reason in get_args(FinishReason):
            self._succeeded.labels(self._model_name, reason)
        for error in ERRORS:
            self._failed.labels(self._model_name, error.__name__)

    def _counter(self, name: str, help_text: str, label: str) -> Counter:
        return Counter(f"promptmill_{name}", help_text, ("model_name", label), registry=self._registry)

    def _histogram(self, name: str, help_text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(f"promptmill_{name}", help_text, ("model_name",), buckets=buckets, registry=self._registry)
        child: Histogram = family.labels(self._model_name)
        return child


class _RecordCollector(Collector):
    def __init__(self, record: Callable[[], WorkerRecord], model_name: str) -> None:
        self._record = record
        self._model_name = model_name

    def collect(self) -> Iterator[Metric]:
        record = self._record()
        yield self._gauge("num_requests_running", "Prompts in the engine.", record.running)
        yield self._gauge("num_requests_waiting", "Prompts that wait for a slot of the engine.", record.waiting)
        yield self._gauge("max_num_seqs", "Slots of the engine.", record.max_batch)
        yield self._gauge("kv_cache_usage_perc", "Share of the cache that is in use, 0 to 1.", record.cache_used)
        yield self._counter("prompt_tokens", "Tokens of prompts that were answered.", record.prompt_tokens)
        yield self._counter("generation_tokens", "Generated tokens.", record.completion_tokens)
        yield self._counter("engine_steps", "Steps of the engine.", record.steps)
        if record.gpu_memory_total_bytes:
            yield self._gauge("gpu_memory_used_bytes", "Memory of the GPU in use.", record.gpu_memory_used_bytes)
            yield self._gauge("gpu_memory_total_bytes", "Memory of the GPU.", record.gpu_memory_total_bytes)
        if record.gpu_utilization is not None:
            yield self._gauge("gpu_utilization_ratio", "How busy the GPU is, 0 to 1.", record.gpu_utilization)
        about = InfoMetricFamily("promptmill_worker", "What the worker is.", labels=["model_name"])
        shown = ("name", "model", "engine", "device", "precision", "attention", "version")
        about.add_metric([self._model_name], {name: str(getattr(record, name)) for name in shown})
        yield about

    def _gauge(self, name: str, help_text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"promptmill_{name}", help_text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family

    def _counter(self, name: str, help_text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"promptmill_{name}", help_text, labels=["model_name"])
        family.add_metric([self._model_name], value)
        return family
