"""Which models run in static batches, and how large these are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import LlamaConfig

from promptmill_worker.batch_limit import GROWS_AFTER_BATCHES, BatchLimit
from promptmill_worker.continuous_support import why_not_continuous


def a_model(**declared: Any) -> SimpleNamespace:
    """A model that declares what one for the continuous batch does, but for ``declared``."""
    config = LlamaConfig(num_hidden_layers=2)
    config.layer_types = declared.pop("layer_types", None)
    fit = {"_is_stateful": False, "_supports_attention_backend": True, "hf_device_map": {"": "cpu"}}
    return SimpleNamespace(config=config, **{**fit, **declared})


@pytest.mark.parametrize(
    ("declared", "reason"),
    [
        ({}, None),
        ({"layer_types": ["full_attention", "sliding_attention"]}, None),
        ({"_is_stateful": True}, "keeps a state"),
        ({"layer_types": ["full_attention", "conv", "linear_attention"]}, "layers (conv, linear_attention)"),
        ({"_supports_attention_backend": False}, "attention can't be replaced"),
        ({"hf_device_map": {"a": 0, "b": 1}}, "spread over cuda:0 and cuda:1"),
    ],
)
def test_a_model_says_itself_whether_it_fits_the_continuous_batch(declared: dict[str, Any], reason: str | None) -> None:
    said = why_not_continuous(a_model(**declared))
    assert said is None if reason is None else reason in str(said)


def test_a_batch_is_halved_until_it_fits_and_doubles_after_a_while_that_grows() -> None:
    limit = BatchLimit(32)
    assert limit.did_not_fit(20)
    assert limit.now == 10
    for expected in (10, 20, 20, 32):
        assert limit.now == expected
        for _ in range(GROWS_AFTER_BATCHES):
            limit.did_fit()


def test_where_one_request_alone_does_not_fit_the_batch_is_no_smaller_for_it() -> None:
    limit = BatchLimit(8)
    for requests in (8, 4, 2):
        assert limit.did_not_fit(requests)
    assert limit.now == 1
    assert not limit.did_not_fit(1)
    assert limit.now == 8
