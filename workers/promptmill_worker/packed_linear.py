"""Linear layers whose weights lie as oneDNN's kernels want them, on a CPU.

torch's own linear layer hands oneDNN (or, in float32, MKL) the weights as they are; they are rearranged, or read less
well, in every step. Arranged once, a step of 32 rows of SmolLM2-135M takes 0.75 of the time in bfloat16 and 0.5 in
float32, one of a single row 0.6, to the same bits in bfloat16.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

__all__ = ["pack_linear_layers"]

#: Rows that the arrangement is best for; any number works.
ROWS = 32


class PackedLinear(nn.Module):
    """Does what a linear layer does.

    Args:
        linear: Its weights are copied, its bias is shared.
        tied: Whether another layer has the same weights: they are not counted as this one's parameters then.
    """

    def __init__(self, linear: nn.Linear, tied: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), ROWS)
        if tied:
            self.register_buffer("weight", weight, persistent=False)
        else:
            self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = linear.bias

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """See ``nn.Linear.forward``."""
        return torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")  # type: ignore[no-any-return]

    def unpacked(self) -> nn.Linear:
        """A linear layer with the same weights."""
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(self.weight.to_dense(), requires_grad=False)
        linear.bias = self.bias
        return linear

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.unpacked()._save_to_state_dict(destination, prefix, keep_vars)


def pack_linear_layers(model: Any) -> None:
    """Puts a ``PackedLinear`` in the place of each linear layer that is nothing else, where oneDNN can compute it.

    Layers on other devices and quantised ones stay, and all of them where the model can't do with packed ones.

    Args:
        model: One of transformers, all in one place.
    """
    owners = Counter(id(layer.weight) for layer in model.modules() if hasattr(layer, "weight"))
    # The layers themselves are not held on to: each one's memory is free before the next is copied.
    places = [(parent, name) for parent in model.modules() for name, _ in parent.named_children()]
    packed = []
    for parent, name in places:
        layer = getattr(parent, name)
        if type(layer) is nn.Linear and _is_packable(layer):
            setattr(parent, name, PackedLinear(layer, tied=owners[id(layer.weight)] > 1))
            packed.append((parent, name))
    if packed and not _computes(model):
        for parent, name in packed:
            setattr(parent, name, getattr(parent, name).unpacked())


def _computes(model: Any) -> bool:
    """Whether a step succeeds: some models take a layer's weights and multiply by themselves."""
    try:
        with torch.inference_mode():
            model(input_ids=torch.zeros(1, 2, dtype=torch.int64), use_cache=False)
    except Exception:  # whatever a model's code raises
        return False
    return True


def _is_packable(layer: nn.Linear) -> bool:
    return layer.weight.device.type == "cpu" and _is_supported(layer.weight.dtype)


def _is_supported(dtype: torch.dtype) -> bool:
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())
