"""A `vllm serve` process: token ids over HTTP, weights over a folder that both sides see."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from advalign.errors import RolloutError
from advalign.functional.escaping import exception
from advalign.http_client import Client, ServerError
from advalign.models import Network
from advalign.rollout import _vllm_weights as weights
from advalign.types import Sampling

CONNECTIONS = 64  # concurrent requests; the server batches them
MOST_BYTES = 1 << 28  # of one reply: some 200 bytes for each sampled token
LAUNCH = "docs/rollouts.md shows how to start it"


class ServerBackend:
    """The client of one server."""

    context: int
    """How many tokens a row may have, as the server reports."""
    model: str
    """The name of the model, or of the adapter, that answers."""

    def __init__(self, url: str, folder: Path, timeout: float) -> None:
        """`folder`: for weights; `timeout`: of one request, in seconds."""
        self.url, self.folder = url.rstrip("/").removesuffix("/v1"), folder.expanduser().resolve()
        self._client = Client(url=self.url, seconds=timeout, most_bytes=MOST_BYTES)
        with self._vllm_form("/v1/models"):
            served = self._request("/v1/models")["data"][0]
            self.model, self.context = str(served["id"]), int(served["max_model_len"])
        self.base, self.count = self.model, 0

    def push(self, network: Network) -> None:
        """Sends the current weights, in a new folder, since a server may cache what it has read from one."""
        self.count += 1
        path = self.folder / f"weights-{self.count}"
        if path.exists():
            shutil.rmtree(path)
        if weights.adapted(network):
            weights.write_adapter(network, path)
            self._request("/v1/load_lora_adapter", {"lora_name": f"advalign-{self.count}", "lora_path": str(path), "load_inplace": True})
            if self.model != self.base:
                self._request("/v1/unload_lora_adapter", {"lora_name": self.model})
            self.model = f"advalign-{self.count}"
        else:
            weights.write(network, path)
            self._request("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
        self._reset_prompt_cache()
        shutil.rmtree(self.folder / f"weights-{self.count - 1}", ignore_errors=True)

    def _reset_prompt_cache(self) -> None:
        """Clears the prompts that were cached under other weights."""
        with self._vllm_form("/reset_prefix_cache"):
            forgotten = self._request("/reset_prefix_cache", {})["success"]
        if not forgotten:
            raise RolloutError(f"rollout: the vLLM server at {self.url} did not forget its cached prompts; some request is still running.")

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
        """Per prompt, `n` times the sampled ids and their log-probabilities; `lengths`: the most tokens of its responses."""
        # Everything that a model's generation_config.json could set is set here; one seed per prompt needs one request per prompt.
        common: dict[str, Any] = {"model": self.model, "n": n, "temperature": sampling.temperature, "top_p": sampling.top_p}
        common |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        common |= {"ignore_eos": True, "stop_token_ids": list(stop_ids), "logprobs": 0, "return_token_ids": True}

        common |= {"stop": list(stop_texts), "include_stop_str_in_output": True} if stop_texts else {}

        def one(request: tuple[Sequence[int], int, int]) -> list[tuple[list[int], list[float]]]:
            ids, length, seed = request
            reply = self._request("/v1/completions", common | {"prompt": list(ids), "max_tokens": length, "seed": seed})
            with self._vllm_form("/v1/completions"):
                choices = sorted(reply["choices"], key=lambda choice: choice["index"])
                return [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(one, zip(prompts, lengths, seeds, strict=True)))

    @contextlib.contextmanager
    def _vllm_form(self, path: str) -> Iterator[None]:
        """Reads a reply; one in another form than vLLM's is a RolloutError."""
        try:
            yield
        except (KeyError, IndexError, TypeError, ValueError) as error:
            sentence = f"rollout.url: {self.url}{path} answered in another form than vLLM's ({exception(error)}); {LAUNCH}."
            raise RolloutError(sentence) from None

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        try:
            return self._client.ask(path, body)
        except ServerError as error:
            if error.status is not None:
                raise RolloutError(f"rollout.url: {self.url}{path} {error}; {LAUNCH}.") from None
            raise RolloutError(f"rollout.url: no vLLM server answers at {self.url}{path} ({error}); {LAUNCH}.") from None
