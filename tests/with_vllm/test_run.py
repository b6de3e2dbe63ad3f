"""A run of GRPO that samples with vLLM, as a user starts it."""

import json
import sys

import pytest
import yaml

pytest.importorskip("vllm", reason="the package vllm is not installed: make test-vllm runs these in an environment of its own")

from helpers.vllm_models import OPTIONS

from advalign import cli

RUN = {
    "learners": {
        "policy": {
            "model": "scratch:tiny?hidden_size=128",
            "tokenizer": {"kind": "words", "data": "task:constraints"},
            "max_length": 32,
            "learning_rate": 3.0e-3,
        }
    },
    "sources": {
        "write": {
            "kind": "prompts",
            "data": "task:constraints",
            "batch_size": 8,
            "group_size": 8,
            "sampling": {"max_new_tokens": 10},
            "rewards": [{"kind": "length", "max_length": 6, "buffer": 5}],
            "advantage": {"kind": "group", "scale": "none"},
        }
    },
    "objectives": {"policy": {"kind": "grpo", "source": "write"}},
    "evaluations": {
        "test": {"data": "task:constraints", "split": "test", "number": 4, "sampling": {"max_new_tokens": 10, "temperature": 0.0}}
    },
    "rollout": {"kind": "vllm", "options": OPTIONS},
    "args": {"max_steps": 30, "eval_steps": 15},
}


@pytest.mark.parametrize("ahead", [0, 1])
def test_grpo_learns_from_what_vllm_samples(ahead, tmp_path, monkeypatch):
    run = {**RUN, "args": {**RUN["args"], "output_dir": str(tmp_path / "out")}}
    if ahead:
        run["sources"] = {"write": {**RUN["sources"]["write"], "ahead": ahead}}
        run["objectives"] = {"policy": {**RUN["objectives"]["policy"], "correction": {"level": "token"}}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run))
    monkeypatch.setattr(sys, "argv", ["advalign", "train", str(tmp_path / "run.yaml")])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert not left.value.code
    log = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert len(log) == 30
    rewards = [line["write/reward"] for line in log]
    # Shorter is better here; an untrained model ends by chance alone.
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    assert all(0 < line["rollout/logprob_gap_mean"] < 1e-4 for line in log)
    assert len({line["rollout/logprob_gap_mean"] for line in log}) > 20  # every sync was checked anew
    assert [line["write/staleness"] for line in log[:3]] == [0, 1, 1] if ahead else "write/staleness" not in log[0]
    assert (tmp_path / "out" / "policy" / "model.safetensors").is_file()
