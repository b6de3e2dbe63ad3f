"""A `vllm serve` process elsewhere: token ids over HTTP, weights over a folder that both sides see."""

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

CONNECTIONS = 64  # requests under way at once; the server makes batches of them
LAUNCH = "docs/rollouts.md shows how to start it"


class Server:
    """`url` of the server, `folder` for weights, `timeout` of one request in seconds; `context` as the server says."""

    def __init__(self, url: str, folder: Path, timeout: float) -> None:
        self.url, self.folder, self.timeout = url.rstrip("/").removesuffix("/v1"), folder.expanduser().resolve(), timeout
        served = self._ask("/v1/models")["data"][0]
        self.model, self.context = str(served["id"]), int(served["max_model_len"])
        self.base, self.count = self.model, 0

    def push(self, network: Network) -> None:
        """The weights of now, in a folder of their own, since a server may keep what it has read from one."""
        self.count += 1
        path = self.folder / f"weights-{self.count}"
        if path.exists():
            shutil.rmtree(path)
        if weights.adapted(network):
            weights.write_adapter(network, path)
            self._ask("/v1/load_lora_adapter", {"lora_name": f"advalign-{self.count}", "lora_path": str(path), "load_inplace": True})
            if self.model != self.base:
                self._ask("/v1/unload_lora_adapter", {"lora_name": self.model})
            self.model = f"advalign-{self.count}"
        else:
            weights.write(network, path)
            self._ask("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(path)}})
        self._forget()
        shutil.rmtree(self.folder / f"weights-{self.count - 1}", ignore_errors=True)

    def _forget(self) -> None:
        """What was cached of prompts was computed with other weights."""
        if not self._ask("/reset_prefix_cache", {})["success"]:
            raise RolloutError(f"rollout: the vLLM server at {self.url} did not forget its cached prompts; some request is still running.")

    def sample(
        self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], seeds: Sequence[int], n: int, sampling: Sampling, end: int | None
    ) -> list[list[tuple[list[int], list[float]]]]:
        """Per prompt, `n` times the sampled ids and their log-probabilities."""
        # All that a model's generation_config.json could otherwise set is set; one seed per prompt needs one request per prompt.
        shared: dict[str, Any] = {"model": self.model, "n": n, "temperature": sampling.temperature, "top_p": sampling.top_p}
        shared |= {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        shared |= {"ignore_eos": True, "stop_token_ids": [] if end is None else [end], "logprobs": 0, "return_token_ids": True}

        def one(request: tuple[Sequence[int], int, int]) -> list[tuple[list[int], list[float]]]:
            ids, room, seed = request
            found = self._ask("/v1/completions", shared | {"prompt": list(ids), "max_tokens": room, "seed": seed})
            choices = sorted(found["choices"], key=lambda choice: choice["index"])
            return [(choice["token_ids"], choice["logprobs"]["token_logprobs"]) for choice in choices]

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            return list(pool.map(one, zip(prompts, rooms, seeds, strict=True)))

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as reply:
                text = reply.read().decode()
        except urllib.error.HTTPError as error:
            said = " ".join(error.read().decode(errors="replace").split())[:300]
            raise RolloutError(f"rollout.url: {self.url}{path} answered {error.code} ({said}); {LAUNCH}.") from error
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise RolloutError(f"rollout.url: no vLLM server answers at {self.url}{path} ({reason}); {LAUNCH}.") from error
        return json.loads(text) if text.startswith(("{", "[")) else text
