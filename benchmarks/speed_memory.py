"""Peak memory of log-probabilities and entropy over a large vocabulary, each case in a process of its own; for benchmarks/speed.py.

One row of 2,048 tokens through a decoder of 8 blocks and 512 features. `body`: the blocks alone, forward and backward. `fused`: with this
library's log-probabilities. `naive`: with logits, log_softmax, gather and an entropy, as trainers write it. The process's resident memory
is read before the forward and at its peak; the head's own gradient, which any method needs, is taken off.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TOKENS, WIDTH, BLOCKS = 2048, 512, 8
VOCABULARIES = (16_384, 65_536, 131_072)
MODES = ("body", "fused", "naive")


def resident() -> float:
    """MB now."""
    return _status("VmRSS")


def peak() -> float:
    """MB at most, since the process began. (ru_maxrss would remember the process that started this one.)"""
    return _status("VmHWM")


def _status(name: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    raise OSError(f"/proc/self/status has no {name}")


def measure(mode: str, vocabulary: int) -> dict[str, float]:
    import time

    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from advalign.functional import logprobs as lp

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=1408, num_hidden_layers=BLOCKS, num_attention_heads=8,
        num_key_value_heads=8, tie_word_embeddings=False, max_position_embeddings=TOKENS,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    model.model.embed_tokens = torch.nn.Embedding(64, WIDTH)  # what reads tokens is not what is measured
    ids = torch.randint(0, 64, (1, TOKENS))
    targets = torch.randint(0, vocabulary, (TOKENS,))
    for parameter in model.model.parameters():  # gradients of the blocks stand before and after, whatever the head
        parameter.grad = torch.ones_like(parameter).mul_(0.0)
    before, start = resident(), time.perf_counter()
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
    if mode == "body":
        loss = hidden.square().mean()
    elif mode == "fused":
        values, entropy = lp.linear(hidden, model.lm_head.weight, None, targets)
        loss = values.mean() + 0.01 * entropy.mean()
    else:
        logp = model.lm_head(hidden).log_softmax(-1)
        values = logp.gather(1, targets[:, None]).squeeze(1)
        loss = values.mean() - 0.01 * (logp.exp() * logp).sum(-1).mean()
    loss.backward()
    own = 0.0 if mode == "body" else vocabulary * WIDTH * 4 / 2**20
    return {"peak_mb": peak() - before - own, "seconds": time.perf_counter() - start, "loss": float(loss)}


def case(mode: str, vocabulary: int) -> dict[str, float]:
    """The same, in a process of its own."""
    found = subprocess.run([sys.executable, __file__, mode, str(vocabulary)], capture_output=True, text=True, check=True)
    return dict(json.loads(found.stdout.splitlines()[-1]))


def table() -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": TOKENS, "width": WIDTH, "blocks": BLOCKS, "vocabularies": list(VOCABULARIES)}
    for mode in MODES:
        found[mode] = [case(mode, v) for v in (VOCABULARIES if mode != "body" else VOCABULARIES[-1:])]
    body = found["body"][0]["peak_mb"]
    for mode in ("fused", "naive"):
        found[f"{mode}_to_body"] = [row["peak_mb"] / body for row in found[mode]]
    return found


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
