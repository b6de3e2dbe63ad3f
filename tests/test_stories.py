"""The benchmark on real text: parts that share nothing, the likelihood of samples by a slow loop, differences paired over prompts."""

import math
import sys
from pathlib import Path

import pytest
import torch
from helpers.networks import network

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import stories_summary  # noqa: E402
import tables_stories  # noqa: E402
from prepare_stories import prepare  # noqa: E402
from stories_models import nll  # noqa: E402


def test_the_parts_share_no_sentence_and_cover_the_text():
    number = 400
    names = [a + b for a in "bcdfghklmn" for b in "aeiou"]
    lines = [f"{names[i % 50]} and {names[i // 50]} went to the hill again." for i in range(number)]
    found = prepare(" ".join(lines))
    parts = {name: " ".join(row.get("response", row.get("text", "")) for row in rows) for name, rows in found.items()}
    held = {name: {line for line in lines if line in text} for name, text in parts.items()}
    assert held["base"].isdisjoint(held["task.txt"])
    assert held["base"].isdisjoint(held["discriminator"])
    assert held["task.txt"].isdisjoint(held["discriminator"])
    assert held["half"] < held["base"] <= held["asked.txt"]
    assert held["half"] <= held["half.txt"] < held["asked.txt"]
    # 55 % of 400 are 220, up to 75 % 80 more, 100 remain; a piece that the end of a part cuts short is not kept (at most 40 words).
    assert (len(held["asked.txt"]), len(held["task.txt"])) == (220, 80)
    assert 220 - 6 <= len(held["base"]) <= 220
    assert 100 - 6 <= len(held["discriminator"]) <= 100


def test_nll_is_a_slow_loop_over_tokens_without_the_end():
    net = network()
    prompts, texts = ["a b :", "a b :", "c :", "c :"], ["d e f", "g", "h i", "a"]
    pairs = nll(net, prompts, texts, 2)
    slow = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = [*net.encoder.prompt(prompt), *net.encoder.response(text, finished=False)]
        with torch.no_grad():
            logits = net.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        start = len(net.encoder.prompt(prompt))
        slow.append((-sum(float(logits[t - 1, ids[t]]) for t in range(start, len(ids))), len(ids) - start))
    for group, (total, count) in enumerate(pairs):
        mine = slow[2 * group : 2 * group + 2]
        assert count == sum(n for _, n in mine) == (4 if group == 0 else 3)  # d e f g, h i a
        assert total == pytest.approx(sum(v for v, _ in mine), abs=1e-3)  # kept to three places


def run(compliance, nlls):
    rates = {name: [1.0, 1.0] for name in stories_summary.RATES} | {"compliance": compliance}
    return {"by_prompt": rates | {"nll": nlls}, "said": [], "cpu_seconds": 1.0, "discriminator": {"discriminator/accuracy": 0.5}}


def test_differences_average_over_seeds_and_pair_prompts():
    first = {0: run([1.0, 0.5], [[2.0, 1], [4.0, 2]]), 1: run([0.0, 0.5], [[2.0, 1], [4.0, 2]])}
    other = {0: run([0.0, 0.0], [[3.0, 1], [6.0, 2]]), 1: run([0.0, 1.0], [[3.0, 1], [6.0, 2]]), 2: run([9.0, 9.0], [[9.0, 1], [9.0, 1]])}
    # Prompts: (1 + 0) / 2 - 0 = 0.5 and (0.5 + 0.5) / 2 - (0 + 1) / 2 = 0: mean 0.25. Seed 2 has no partner.
    found = stories_summary.gap(first, other, True)["minus_this"]
    assert found["compliance"]["difference"] == pytest.approx(0.25)
    assert found["nll"]["difference"] == pytest.approx(-1.0)  # 2 against 3 per token, at both prompts
    assert found["compliance"]["n"] == 2
    assert stories_summary.gap(first, other, False) == {}


def test_a_row_has_the_perplexity_of_all_tokens_together():
    # (2 + 4) / (1 + 2) = 2 nats per token
    row = stories_summary.row({0: run([1.0, 0.5], [[2.0, 1], [4.0, 2]])})
    assert row["perplexity"]["mean"] == pytest.approx(math.exp(2))
    assert row["compliance"]["mean"] == 0.75


def test_the_table_leaves_out_what_is_not_there():
    arm = stories_summary.row({0: run([1.0, 0.5], [[2.0, 1], [4.0, 2]])}) | {"label": "SFT"}
    for spread in arm.values():
        if isinstance(spread, dict) and math.isnan(spread.get("sd", 0.0)):
            spread["sd"] = None  # as in the file
    text = tables_stories.stories({"command": "make bench-stories", "cpu_hours": 0.1, "gapo": {"sft": arm}})
    assert "| SFT (1) | 0.750 |" in text
    assert "Distillation" not in text
