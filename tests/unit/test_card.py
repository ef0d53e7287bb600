"""The card of a worker, and the warm-up that measures its speed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from promptmill.errors import EngineError, InvalidRequestError, ModelLoadError
from promptmill.fleet import WorkerRecord
from promptmill.protocol import GenerationRequest, GenerationResult
from promptmill_worker import warm_up
from promptmill_worker.card import card
from promptmill_worker.echo import EchoEngine
from promptmill_worker.engine import EngineInfo
from promptmill_worker.settings import EngineSettings
from promptmill_worker.sizes import shown
from promptmill_worker.warm_up import warmed_up

INFO = EngineInfo(
    model="demo",
    engine="transformers",
    device="cuda:0",
    precision="bfloat16",
    attention="flash_attention_2",
    context_tokens=8_192,
    cache_tokens=65_536,
    max_batch=32,
    weights_bytes=1_500_000_000,
    parameters=1_236_000_000,
    chat_template=True,
    tokens_per_s_alone=41.26,
    tokens_per_s_full=1_234.5,
)


def test_a_card_is_a_line_for_each_fact() -> None:
    assert card(INFO).splitlines() == [
        "  model      demo",
        "  engine     transformers, on cuda:0",
        "  weights    1.24B parameters, bfloat16, 1.4 GiB",
        "  context    8,192 tokens",
        "  cache      65,536 tokens",
        "  batch      up to 32 requests",
        "  attention  flash_attention_2",
        "  chat       has a template for messages",
        "  speed      41.3 tokens/s alone, 1,234.5 in a full batch",
    ]


def test_a_card_leaves_out_what_is_not_known() -> None:
    lines = card(EngineInfo(model="demo", engine="echo", context_tokens=100, max_batch=1_000)).splitlines()
    assert [line.split()[0] for line in lines] == ["model", "engine", "context", "batch"]
    without = INFO.model_copy(update={"chat_template": False, "tokens_per_s_full": 0.0})
    assert "  chat       no template: takes prompts, refuses messages" in card(without).splitlines()
    assert "speed" not in card(without)


def test_a_worker_publishes_all_that_its_card_says() -> None:
    assert set(EngineInfo.model_fields) <= set(WorkerRecord.model_fields)


def test_sizes_are_shown_in_the_largest_unit() -> None:
    assert [shown(size) for size in (12, 2_048, 600_000_000, 3 * 2**30)] == ["12 B", "2.0 KiB", "572 MiB", "3.0 GiB"]


class Clock:
    """Stands in for ``time``: it goes on only while somebody sleeps."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Metronome(EchoEngine):
    """Makes 50 steps a second by a clock; a request lasts until it is cancelled, but for those of two tokens."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(EngineSettings.read(model="demo", engine="echo", max_batch=8))
        self.info = self.info.model_copy(update={"engine": "metronome"})
        self.clock = clock
        self.most_running = 0
        self._waiting: set[Future[GenerationResult]] = set()

    def submit(self, request: GenerationRequest) -> Future[GenerationResult]:
        if request.sampling.max_tokens == 2:
            return super().submit(request)
        future: Future[GenerationResult] = Future()
        self._waiting.add(future)
        self.most_running = max(self.most_running, len(self._waiting))
        future.add_done_callback(self._waiting.discard)
        return future

    @property
    def running(self) -> int:
        return len(self._waiting)

    @property
    def steps(self) -> int:
        return int(50 * self.clock.now)


@pytest.fixture
def metronome(monkeypatch: pytest.MonkeyPatch) -> Iterator[Metronome]:
    clock = Clock()
    monkeypatch.setattr(warm_up, "time", clock)
    with Metronome(clock) as engine:
        yield engine


def test_speed_is_measured_alone_and_in_a_full_batch_and_nothing_is_left_running(metronome: Metronome) -> None:
    info = warmed_up(metronome, 0.4)
    assert info.tokens_per_s_alone == pytest.approx(50, rel=0.05)
    assert info.tokens_per_s_full == pytest.approx(8 * 50, rel=0.05)
    assert (metronome.most_running, metronome.running) == (8, 0)
    assert 0.8 < (ended_at := metronome.clock.now) < 1.2
    assert warmed_up(metronome, 0).tokens_per_s_alone == 0
    assert metronome.clock.now == ended_at


@pytest.mark.parametrize(
    "error", [EngineError("CUDA error: no kernel image is available"), InvalidRequestError("no tokens")]
)
def test_an_engine_that_can_not_generate_is_not_put_to_work(metronome: Metronome, error: Exception) -> None:
    def submit(_: GenerationRequest) -> Future[GenerationResult]:
        future: Future[GenerationResult] = Future()
        future.set_exception(error)
        return future

    metronome.submit = submit  # type: ignore[method-assign]
    if isinstance(error, InvalidRequestError):  # that was our prompt's fault
        assert warmed_up(metronome, 1) == metronome.info
        return
    with pytest.raises(ModelLoadError, match="'demo' is loaded, but can't generate: CUDA error: no kernel image"):
        warmed_up(metronome, 1)
