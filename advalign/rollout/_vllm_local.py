"""vLLM inside this process: the model is written to a folder once, and its weights are then replaced in place."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from advalign.errors import ConfigError, RolloutError
from advalign.models import Network, positions
from advalign.rollout import _vllm_weights as weights
from advalign.types import Sampling

PROCESSORS = ["advalign.rollout._vllm_logits:SampledLogits", "advalign.rollout._vllm_logits:Greedy"]
# One process, so that weights go over by reference; the model runner that takes the processors above.
SETTINGS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
RESERVED = ("model", "skip_tokenizer_init", "logprobs_mode", "logits_processors", "enable_lora", "trust_remote_code")
"""Arguments of vllm.LLM that are set here."""


class LocalBackend:
    """A vLLM in this process."""

    context: int
    """How many tokens a row may have."""
    adapted: bool
    """Only an adapter is sent (`_vllm_weights.adapted`)."""
    adapter: Any
    """The LoRARequest of the current adapter; None: there is none."""
    direct: bool
    """Weights are passed by reference, since one process samples."""

    def __init__(self, network: Network, options: Mapping[str, Any]) -> None:
        """`options` are arguments of vllm.LLM."""
        for name in RESERVED:
            if name in options:
                raise ConfigError(f"rollout.options.{name}: '{options[name]}' given, but the engine sets it itself; leave it out.")
        self.folder = tempfile.TemporaryDirectory(prefix="advalign-vllm-")
        self.adapted, self.count, self.adapter = weights.adapted(network), 0, None
        longest = positions.row_bound(network.model, None)[0] or network.encoder.max_length
        self.context = int(options.get("max_model_len") or longest)
        self.direct = int(options.get("tensor_parallel_size", 1)) * int(options.get("pipeline_parallel_size", 1)) == 1
        weights.write(network, Path(self.folder.name) / "model")
        # A fraction that leaves memory for the learner; vLLM's default is 0.92.
        arguments = {"gpu_memory_utilization": 0.3, "dtype": _precision(network), "max_model_len": self.context, **options}
        if self.adapted:
            arguments = {"enable_lora": True, "max_lora_rank": weights.rank(network), **arguments}
        self.llm = _start(Path(self.folder.name) / "model", arguments)
        self.direct &= os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
        if self.adapted:
            self.push(network)

    def push(self, network: Network) -> None:
        """Sends the current weights, and clears the prompts that were cached under others."""
        self.count += 1
        if self.adapted:
            self._push_adapter(network)
            return
        if self.direct:
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights.checkpoint_tensors(network)})
            self.llm.collective_rpc(_repack_head)
        else:
            path = Path(self.folder.name) / "model"
            weights.write(network, path)
            self.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(path)})
        if not self.llm.reset_prefix_cache():
            raise RolloutError("rollout: vLLM did not forget its cached prompts after new weights; some request is still running.")

    def _push_adapter(self, network: Network) -> None:
        from vllm.lora.request import LoRARequest

        # A new name each time: vLLM caches prompts by it.
        path = Path(self.folder.name) / "adapter"
        weights.write_adapter(network, path)
        if self.adapter is not None:
            self.llm.llm_engine.remove_lora(self.adapter.lora_int_id)
        self.adapter = LoRARequest(f"adapter-{self.count}", self.count, str(path))
        self.llm.llm_engine.add_lora(self.adapter)

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        lengths: Sequence[int],
        seeds: Sequence[int],
        n: int,
        sampling: Sampling,
        stop_ids: Sequence[int],
        stop_texts: Sequence[str],
    ) -> list[list[tuple[list[int], list[float]]]]:
        """Per prompt, `n` times the sampled ids and their log-probabilities; `lengths`: the most tokens of its responses. This vLLM has no
        tokenizer: it samples on behind a string of `stop_texts`, and the caller cuts the response."""
        from vllm import SamplingParams

        ends = {"ignore_eos": True, "stop_token_ids": list(stop_ids)}  # the model's own file may name others
        common = {"n": n, "temperature": sampling.temperature, "top_p": sampling.top_p, "logprobs": 0, "detokenize": False, **ends}
        params = [SamplingParams(max_tokens=length, seed=seed, **common) for length, seed in zip(lengths, seeds, strict=True)]
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        requests = self.llm.generate(inputs, params, use_tqdm=False, lora_request=self.adapter)
        return [[_read(completion) for completion in request.outputs] for request in requests]


def _repack_head(worker: Any) -> None:
    """On a CPU vLLM computes with a packed copy of each matrix. vLLM 0.32 renews all of them but that of a head tied to the
    embeddings, which is in no checkpoint."""
    head = getattr(worker.model_runner.get_model(), "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


def _read(completion: Any) -> tuple[list[int], list[float]]:
    ids = list(completion.token_ids)
    return ids, [candidates[token].logprob for candidates, token in zip(completion.logprobs, ids, strict=True)]


def _start(folder: Path, options: Mapping[str, Any]) -> Any:
    """A vllm.LLM. It seeds every generator of the process when it starts; their states are restored."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        from vllm import LLM
    except ImportError as error:
        raise ConfigError(
            "rollout: kind vllm needs the package vllm; pip install 'advalign[vllm]', or give the url of a server (docs/rollouts.md)."
        ) from error
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 -- the global generator is what vLLM seeds
    try:
        with torch.random.fork_rng():
            reserved = {"skip_tokenizer_init": True, "logprobs_mode": "processed_logits", "logits_processors": PROCESSORS}
            return LLM(model=str(folder), generation_config="vllm", trust_remote_code=False, **reserved, **options)
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _precision(network: Network) -> str:
    """vLLM has no double precision."""
    return "float32" if network.dtype == torch.float64 else str(network.dtype).removeprefix("torch.")
