"""A `vllm serve` process: token ids over HTTP, weights over a folder that both sides see."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from advalign.errors import RolloutError
from advalign.models import Network
from advalign.rollout import _vllm_weights as weights
from advalign.types import Sampling

CONNECTIONS = 64  # concurrent requests; the server batches them
LAUNCH = "docs/rollouts.md shows how to start it"


class ServerBackend:
    """The client of one server."""

    context: int
    """How many tokens a row may have, as the server reports."""
    model: str
    """The name of the model, or of the adapter, that answers."""

    def __init__(self, url: str, folder: Path, timeout: float) -> None:
        """`folder`: for weights; `timeout`: of one request, in seconds."""
        self.url, self.folder, self.timeout = url.rstrip("/").removesuffix("/v1"), folder.expanduser().resolve(), timeout
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
        if not self._request("/reset_prefix_cache", {})["success"]:
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
            choices = sorted(reply["choices"], key=lambda choice: choice["index"])
            return [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(one, zip(prompts, lengths, seeds, strict=True)))

    def _request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            detail = " ".join(error.read().decode(errors="replace").split())[:300]
            raise RolloutError(f"rollout.url: {self.url}{path} answered {error.code} ({detail}); {LAUNCH}.") from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise RolloutError(f"rollout.url: no vLLM server answers at {self.url}{path} ({reason}); {LAUNCH}.") from error
        return json.loads(text) if text.startswith(("{", "[")) else text
