"""What every experiment on SmolLM2 asks of a model: its answers, and how much of its language it has kept."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from smollm_cells import DTYPE, MODEL, smoke

from advalign import data as loading
from advalign.models import Network, load
from advalign.models.padding import pad
from advalign.targets import GeneratorTarget
from advalign.training import evaluate
from advalign.types import Example, Prompt, Sampling

BUDGET = 4096
"""Tokens of a forward pass without gradient."""
WIDTH = 128
"""Tokens of a piece of plain text."""
HELD_OUT = 40
"""Rows of Alpaca at the end of its file, which no experiment trains on."""


def base() -> Network:
    """The model as it is published."""
    return load(MODEL, dtype=DTYPE, max_length=512)


def answers(network: Network, prompts: Sequence[Prompt], max_new_tokens: int = 40) -> list[str]:
    """Greedy answers."""
    examples = [Example(prompt=prompt, id=str(i)) for i, prompt in enumerate(prompts)]
    greedy = Sampling(max_new_tokens=max_new_tokens, temperature=0.0)
    return [group.rollouts[0].text for group in GeneratorTarget(network).generate(examples, 1, greedy, ("answers",))]


def text_nll(network: Network) -> list[float]:
    """Nats per token of the first 128 tokens of each of 24 articles of Wikipedia, without a template: exp(mean) is the perplexity."""
    with gzip.open(Path(os.environ["ADVALIGN_DATA"]) / "lm_wikitext2/wiki_demo_plain.txt.gz", "rt", encoding="utf-8") as file:
        articles = [line.strip() for line in file][: 2 if smoke() else 24]
    rows = [network.encoder.tokenizer(text[:2000], add_special_tokens=False)["input_ids"][:WIDTH] for text in articles]
    tokens = pad(rows, [1] * len(rows), network.encoder.pad_id)
    with torch.no_grad():
        parts = [network.forward(tokens.index(part), {"logprobs"}).logprobs for part in torch.arange(len(rows)).split(8)]
    logprobs = torch.cat([part.float() for part in parts if part is not None])
    return [-float(logprobs[i][tokens.target[i]].mean()) for i in range(len(rows))]


def alpaca_held_out() -> list[dict[str, str]]:
    """{prompt, response}: the last rows of Alpaca's file without an input and with a response of at most 60 words."""
    rows = loading.rows(f"{os.environ['ADVALIGN_DATA']}/if_alpaca5k/train.jsonl.gz")
    short = [r for r in rows if not r["input"] and 3 <= len(r["output"].split()) <= 60]
    return [{"prompt": r["instruction"], "response": r["output"]} for r in short[-HELD_OUT:]]


def answer_nll(network: Network) -> list[float]:
    """Nats per token of each held-out answer of Alpaca, given its instruction."""
    rows = alpaca_held_out()[: 2 if smoke() else None]
    return [evaluate.nll(network, [Example(prompt=r["prompt"], id=str(i))], [r["response"]], BUDGET) for i, r in enumerate(rows)]
