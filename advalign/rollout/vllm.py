"""Sampling with vLLM, inside this process or from a server."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch

from advalign.errors import BudgetError, ConfigError, RolloutError
from advalign.http_client import ServerAddress
from advalign.interfaces import RolloutEngine
from advalign.models import Network
from advalign.models.endings import StopRule
from advalign.models.generation import warn_left_out
from advalign.models.inference import batched_forward, batches_in_order
from advalign.ranges import OneOf, PositiveBound, Words
from advalign.rollout._checks import check_finite
from advalign.rollout._vllm_local import LocalBackend
from advalign.rollout._vllm_server import ServerBackend
from advalign.rollout._vllm_weights import signature
from advalign.types import Rollout, RolloutGroup, Sampling

__all__ = ["VLLM"]

ON_GAP = ("error", "warn")
NUM_CHECKED = 8  # responses per check, one of each prompt
# Mean |log p - log p_sampler|: rounding in single precision is far below; half precisions round log p by about as much.
TOLERANCE = {torch.float32: 0.002, torch.float64: 0.002}
HALF = 0.05


@dataclass(frozen=True, kw_only=True)
class VLLM(RolloutEngine):
    """y_t ~ softmax(z_t / temperature), truncated to the top-p nucleus, by vLLM; greedy at temperature 0.

    Without `url`, vLLM runs in this process: the model is written to a temporary folder once, and `sync` replaces the weights in place.
    With `url`, it is a `vllm serve` process in any environment on any machine: ids over HTTP, weights as safetensors over `folder`. Of a
    LoRA learner only the adapter is sent. Prompts and responses are token ids; log-probabilities are those at `temperature` before the
    nucleus is cut (`_vllm_logits.py`).

    After every sync the trainer's own forward pass reads some of the responses: a mean gap of log-probabilities above `tolerance` means
    that weights did not arrive or that the two compute differently.
    """

    url: ServerAddress | None = None
    """Of a server. None: vLLM runs in this process."""
    folder: Words | None = None
    """A path for weights that this process and the server both see."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `vllm.LLM`, without `url`."""
    tolerance: PositiveBound | None = None
    """Largest mean |log p - log p_sampler|. None: 0.002 in single precision, 0.05 below."""
    on_gap: Annotated[str, OneOf(ON_GAP, "reaction")] = "error"
    """What a larger gap does: error or warn."""
    timeout: PositiveBound = 1800.0
    """Of one request to a server, in seconds."""
    state: _State = field(init=False, repr=False, compare=False, default_factory=lambda: _State())

    def __post_init__(self) -> None:
        if self.url is None and self.folder is not None:
            raise ConfigError(f"rollout.folder: '{self.folder}' given, but without url nothing reads it; leave it out.")
        if self.url is not None and self.folder is None:
            raise ConfigError("rollout.folder: none given; weights go to a server over a folder that both it and this process see.")
        if self.url is not None and self.options:
            raise ConfigError(
                f"rollout.options: {', '.join(self.options)} given, but a server has its own command line (docs/rollouts.md)."
            )

    @property
    def is_remote(self) -> bool:
        return self.url is not None

    @property
    def logs(self) -> dict[str, float]:
        """The gap between the log-probabilities of sampler and trainer, at the last check."""
        return dict(self.state.logs)

    def sync(self, network: Network, version: int) -> None:
        """Samples come from the current weights of `network` from here on; nothing is sent if they have been, at this version."""
        with self.state.lock:
            self._sync(network, version)

    def _sync(self, network: Network, version: int) -> None:
        if self.state.holds(network, version):
            return
        self.state.check_same(network)
        backend = self.state.backend
        if backend is None and self.url is None:
            self.state.backend = LocalBackend(network, self.options)  # starts with these weights
        else:
            if backend is None:
                assert self.url is not None
                assert self.folder is not None
                backend = self.state.backend = ServerBackend(self.url, Path(self.folder), self.timeout)
            backend.push(network)
        self.state.network, self.state.version, self.state.due = weakref.ref(network), version, True

    @torch.no_grad()
    def extend(
        self, network: Network, groups: list[RolloutGroup], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[RolloutGroup]:
        with self.state.lock:  # rollouts of coming steps are sampled in another thread, from a copy of the weights
            if self.state.network is None or self.state.network() is not network:
                self.sync(network, -1)
            warn_left_out(network.model)
            new = self._sample(network, groups, n, sampling, generator)
            check_finite(rollout for rollouts in new for rollout in rollouts)
            if self.state.due:
                self._check(network, groups, new, sampling.temperature or 1.0)
        for group, rollouts in zip(groups, new, strict=True):
            group.rollouts += rollouts
        return groups

    def _sample(
        self, network: Network, groups: Sequence[RolloutGroup], n: int, sampling: Sampling, generator: torch.Generator
    ) -> list[list[Rollout]]:
        backend, rule = self.state.backend, StopRule(network, sampling.stop)
        assert backend is not None
        seeds = torch.randint(2**62, (len(groups),), generator=generator, device=generator.device).tolist()
        lengths = [len(g.prompt_ids) for g in groups]
        context, bound = backend.context, f"the model's context of {backend.context} tokens"
        if sampling.max_length is not None and sampling.max_length < context:
            context, bound = sampling.max_length, f"max_length {sampling.max_length}"
        if max(lengths) >= context:
            raise BudgetError(f"rollout: a prompt of {max(lengths)} tokens leaves no room in {bound}.")
        longest = [min(sampling.max_new_tokens, context - length) for length in lengths]
        copies = n if sampling.temperature else 1  # vLLM refuses several greedy responses to one prompt
        sampled = backend.sample([g.prompt_ids for g in groups], longest, seeds, copies, sampling, sorted(rule.ids), rule.texts)
        return [
            [_rollout(rule, ids, logprobs, limit) for _ in range(n // copies) for ids, logprobs in responses]
            for responses, limit in zip(sampled, longest, strict=True)
        ]

    def _check(self, network: Network, groups: Sequence[RolloutGroup], new: Sequence[Sequence[Rollout]], temperature: float) -> None:
        """Compares with the log-probabilities of the network itself: the first response to each of the first prompts."""
        pairs = [(g.prompt_ids, rollouts[0]) for g, rollouts in zip(groups, new, strict=True)]
        pairs = [(ids, rollout) for ids, rollout in pairs if len(ids) < network.encoder.max_length][:NUM_CHECKED]
        if not pairs:
            return
        checked = [RolloutGroup(example=groups[0].example, prompt_ids=ids, rollouts=[rollout]) for ids, rollout in pairs]
        gaps = _gaps(network, checked, temperature)
        mean, largest = float(gaps.mean()), float(gaps.max())
        tolerance = self._tolerance(network)
        self.state.logs, self.state.due = {"logprob_gap_mean": mean, "logprob_gap_max": largest}, False
        if mean <= tolerance:
            return
        self.state.due = True
        sentence = (
            f"rollout: vLLM's log-probabilities are {mean:.3g} from the trainer's on average ({largest:.3g} at most, {len(gaps)} tokens, "
            f"weights of version {self.state.version}), and tolerance is {tolerance:g}: weights were not synced, or the two compute in "
            "different precisions."
        )
        if self.on_gap == "error":
            raise RolloutError(sentence)
        warnings.warn(sentence, stacklevel=2)

    def _tolerance(self, network: Network) -> float:
        """`tolerance`, or the rounding of the coarser of the two precisions."""
        if self.tolerance is not None:
            return self.tolerance
        coarse = str(self.options.get("dtype", "")).removeprefix("torch.") in ("bfloat16", "float16", "half")
        return HALF if coarse else TOLERANCE.get(network.dtype, HALF)


class _State:
    """The vLLM behind a configuration, and the weights it holds."""

    backend: LocalBackend | ServerBackend | None
    """None before the first sync."""
    network: weakref.ref[Network] | None
    """Whose weights it holds."""
    version: int
    """Of those weights."""
    due: bool
    """Whether they have not been checked yet."""
    signature: tuple[Any, ...] | None
    """Of every network it can hold (`_vllm_weights.signature`)."""
    logs: dict[str, float]
    """Of the last check."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.backend = self.network = self.signature = None
        self.version, self.due, self.logs = -1, False, {}

    def check_same(self, network: Network) -> None:
        """One running vLLM holds models of one shape, of any learner."""
        if network.head != "policy":
            raise ConfigError(f"rollout: vLLM samples from policies, and this network's head is '{network.head}'.")
        if self.signature is None:
            self.signature = signature(network)
        elif self.signature != signature(network):
            raise ConfigError(
                "rollout: this vLLM holds a model of another shape than the learner that now samples; use kind hf for such runs."
            )

    def holds(self, network: Network, version: int) -> bool:
        return self.network is not None and self.network() is network and self.version == version


def _rollout(rule: StopRule, ids: list[int], logprobs: list[float], limit: int) -> Rollout:
    """`limit`: how many tokens it might have had; shorter than that, vLLM saw an ending."""
    response, finished = rule.cut(ids)
    finished = finished or len(ids) < limit
    scores = list(logprobs[: len(response)])
    return Rollout(response_ids=response, sampler_logprobs=scores, text=rule.text(response, finished), finished=finished)


def _gaps(network: Network, groups: list[RolloutGroup], temperature: float) -> torch.Tensor:
    """|log p - log p_sampler| of every sampled token, without dropout."""
    tokens = network.encoder.rollouts(groups, whole=False)
    temperatures = torch.full((len(groups),), temperature, dtype=network.dtype)
    batches = batches_in_order(len(groups), len(groups))
    logprobs = batched_forward(network, tokens, {"logprobs"}, batches=batches, temperatures=temperatures)["logprobs"].double()
    gaps = []
    for row, target, group in zip(logprobs, tokens.target, groups, strict=True):
        read = row[target]
        gaps.append((read - torch.tensor(group.rollouts[0].sampler_logprobs[: len(read)], dtype=torch.float64)).abs())
    return torch.cat(gaps)
