"""Runs inside vLLM: log-probabilities at the temperature, before the nucleus is cut.

vLLM gives the sampled token's number either before the temperature (`raw_...`) or after the nucleus (`processed_...`). Here logits
z / temperature become log_softmax(z / temperature) just before the cut, which does not change what is sampled; the cut then masks
and changes no other number. With `logprobs_mode: processed_logits` the sampled token's "logit" is therefore log p(y_t), exactly.

    vllm serve ... --logprobs-mode processed_logits \\
        --logits-processors advalign.rollout._vllm_logits:SampledLogits advalign.rollout._vllm_logits:Greedy
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

GREEDY = 1e-5  # below this temperature vLLM takes the argmax


class SampledLogits(LogitsProcessor):
    """Rows that are sampled: vLLM applies processors that keep the argmax after the temperature."""

    def __init__(self, config: Any, device: torch.device, pinned: bool) -> None: ...

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, update: Any) -> None: ...

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1)


class Greedy(LogitsProcessor):
    """Greedy rows never reach the processor above. Idle while none is in the batch."""

    def __init__(self, config: Any, device: torch.device, pinned: bool) -> None:
        self.rows: dict[int, bool] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, update: Any) -> None:
        process_dict_updates(self.rows, update, lambda params, *_: True if params.temperature < GREEDY else None)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1) if self.rows else logits
