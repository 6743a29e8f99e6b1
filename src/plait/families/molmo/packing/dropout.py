"""Residual dropout of what attention and MLP of each layer add, at one rate for prompts and one for answers.

Random numbers are drawn, in the type of the values, for positions that have a rate alone: not for prompts where answers are dropped.
Legend: B rows, L positions, N = B L, S positions that have a rate, D width.
"""

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

_NORMED_AFTER = ("post_attention_layernorm", "post_feedforward_layernorm")
"""What adds to the residual stream in layers that norm the outputs of attention and MLP, such as OLMo 2's."""


class ResidualDropout:
    """Drops elements at the positions of the micro-batch that it was begun with, in forward hooks of the layers of `language`."""

    def __init__(self, language: PreTrainedModel, *, prompt: float, answer: float) -> None:
        self.prompt, self.answer = prompt, answer
        self._rates: list[tuple[Tensor | None, float]] = []
        for layer in language.get_decoder().layers:
            for name in _NORMED_AFTER if _NORMED_AFTER[1] in dict(layer.named_children()) else ("self_attn", "mlp"):
                layer.get_submodule(name).register_forward_hook(self._drop)

    def begin(self, batch: Mapping[str, Any], *, training: bool) -> None:
        """Drop at the positions of this micro-batch from now on; nothing if not `training`."""
        places = batch["places"]
        if not training:
            self._rates = []
        elif self.prompt == self.answer:
            self._rates = [(None, self.prompt)]
        else:
            rates = (("prompt", self.prompt), ("loss", self.answer))
            self._rates = [(places[name], rate) for name, rate in rates if rate]

    def _drop(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Drop elements of a sublayer's output (B, L, D), and scale the others at those positions by 1 / (1 - rate)."""
        if not self._rates:
            return output
        value = output[0] if isinstance(output, tuple) else output
        value_ND = value.flatten(0, -2)
        for places_S, rate in self._rates:
            if places_S is None:
                value_ND = F.dropout(value_ND, rate)
            else:
                value_ND = value_ND.index_copy(0, places_S, F.dropout(value_ND.index_select(0, places_S), rate))
        kept = value_ND.view_as(value)
        return (kept, *output[1:]) if isinstance(output, tuple) else kept
