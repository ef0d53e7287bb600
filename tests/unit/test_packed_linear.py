"""A packed linear layer computes what a linear layer computes, and counts as one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from transformers import AutoModelForCausalLM

from promptmill_worker.packed_linear import PackedLinear, pack_linear_layers

DTYPES = [torch.float32, *([torch.bfloat16] if torch.ops.mkldnn._is_mkldnn_bf16_supported() else [])]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_it_computes_what_the_layer_computed(dtype: torch.dtype, bias: bool, rows: int) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(48, 80, bias=bias, dtype=dtype)
    given = torch.randn(1, rows, 48, dtype=dtype)
    packed = PackedLinear(layer, tied=False)
    torch.testing.assert_close(packed(given), layer(given))
    torch.testing.assert_close(packed.state_dict(), layer.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(packed.unpacked()(given), layer(given), rtol=0, atol=0)


def test_a_model_generates_the_same_and_has_as_many_parameters(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(tmp_path, tie_word_embeddings=True)).eval()
    parameters, ids = model.num_parameters(), torch.arange(3, 20)[None]
    options = {"max_new_tokens": 20, "do_sample": False}
    expected = model.generate(ids, **options)
    pack_linear_layers(model)
    assert not [name for name, layer in model.named_modules() if type(layer) is nn.Linear]
    assert torch.equal(model.generate(ids, **options), expected)
    assert model.num_parameters() == parameters
    head = model.lm_head.weight.nelement() * 4
    assert model.get_memory_footprint() >= 4 * parameters + head


def test_quantised_layers_and_those_on_other_devices_stay() -> None:
    class Quantised(nn.Linear):
        """As bitsandbytes' layers are."""

    model = nn.ModuleList([Quantised(8, 8), nn.Linear(8, 8, dtype=torch.float16), nn.Linear(8, 8, device="meta")])
    pack_linear_layers(model)
    assert not any(isinstance(layer, PackedLinear) for layer in model)


def test_a_model_that_multiplies_by_itself_keeps_its_layers() -> None:
    class Own(nn.Module):
        """As Mamba's layers are."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, input_ids: torch.Tensor, **_: object) -> torch.Tensor:
            return nn.functional.linear(torch.ones(input_ids.size(1), 4), self.inner.weight[:2])

    model = Own()
    expected = model(torch.zeros(1, 2))
    pack_linear_layers(model)
    assert type(model.inner) is nn.Linear
    assert torch.equal(model(torch.zeros(1, 2)), expected)
