"""GCG here and in nanoGCG 0.3.0 on SmolLM2-135M-Instruct: the same requests, sentences to be said, suffix length, candidates and steps.

Requests and targets are AdvBench's; every search has ten tokens, 64 candidates a step, 64 substitutes a position, and as many forwards as
eight steps need (a gradient counts as one forward). Both sides score the same tokens: the template closes no answer here.
    tokens     our published GCG, one token a step (kind `tokens`), behind a cached prompt
    gcg        our default, with momentum and a buffer (kind `gcg`)
    nanogcg    its prefix cache does not run with this version of transformers, so candidates are scored whole
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import gcg
from common import paired
from smollm_cells import MODEL, smoke

from advalign import attacks
from advalign.models import Network, load
from advalign.types import Example

CASES = 3
STEPS = 8
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if m['role'] != 'assistant' %}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SEARCHES: dict[str, Any] = {
    "tokens": attacks.TokenSearch(length=gcg.LENGTH, steps=10_000, candidates=gcg.WIDTH, top=gcg.TOP, initial="x"),
    "gcg": attacks.GCG(length=gcg.LENGTH, steps=10_000, candidates=gcg.WIDTH, top=gcg.TOP, initial="x"),
}


def forwards() -> int:
    return (1 if smoke() else STEPS) * (gcg.WIDTH + 1) + 1


def network() -> Network:
    """In float32, with answers that no template closes."""
    model = load(MODEL, dtype="float32", max_length=256, options={"chat_template": TEMPLATE})
    model.encoder.tokenizer.eos_token = None
    return model.eval()


def case(number: int) -> Example:
    """A request of AdvBench and the beginning of an answer that complies."""
    lines = (Path(os.environ["ADVALIGN_DATA"]) / "safety_advbench/harmful_behaviors.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(lines[number * 50])
    return Example(prompt=row["goal"], answer=row["target"], id=str(number))


def search(name: str, number: int) -> dict[str, Any]:
    """One search, with its losses by forwards and its CPU seconds."""
    model, example = network(), case(number)
    begin = time.process_time()
    if name == "nanogcg":
        result = gcg.nano(model, example, number, forwards(), steps=1 if smoke() else STEPS)
    else:
        result = gcg.searched(SEARCHES[name], model, example, number, forwards())
    seconds = time.process_time() - begin
    return {key: result[key] for key in ("loss", "retyped", "forwards", "trace")} | {"search_seconds": seconds}


def compared(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Losses reached within the same forwards, and CPU seconds of a step of 65 forwards."""
    settings = {"cases": len(runs["nanogcg"]), "forwards": forwards(), "length": gcg.LENGTH, "width": gcg.WIDTH, "top": gcg.TOP}
    searches = {name: _one(rows) for name, rows in runs.items()}
    theirs = searches["nanogcg"]
    for name in SEARCHES:
        searches[name]["minus_nanogcg"] = paired(searches[name]["losses"], theirs["losses"])
        searches[name]["ratio"] = theirs["seconds_per_step"] / searches[name]["seconds_per_step"]
    return {"settings": settings, "searches": searches}


def _one(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    losses = [row["loss"] for row in rows]
    seconds = median((gcg.WIDTH + 1) * row["search_seconds"] / row["forwards"] for row in rows)
    return {"losses": losses, "loss": fmean(losses), "seconds_per_step": seconds}
