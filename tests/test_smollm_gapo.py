"""The data, summary and tables of benchmarks/smollm_gapo.py, without the model."""

import random
import sys
from pathlib import Path

import pytest

from advalign import config as configuration
from advalign.functional.instructions import outcomes, read

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tables_smollm_gapo  # noqa: E402
from prepare_smollm_gapo import DEV, HELD_OUT, SEEN, TEST, constrained, content_words, first_sentence, prepare, usable  # noqa: E402
from smollm_gapo_arms import ARMS, SIZES  # noqa: E402
from smollm_gapo_summary import summarise  # noqa: E402

ROW = {"instruction": "Name a benefit of meditation", "answer": "Meditation can reduce stress and improve focus.", "source": "alpaca"}
NOUNS = ("bread", "cheese", "trains", "rivers", "planets", "violins", "tigers", "bridges", "gardens", "clouds")
VERBS = ("needs", "makes", "helps", "finds", "moves", "takes", "holds")


def rows():
    """Plausible questions and answers, each once."""
    for i in range(2400):
        first, second, verb = NOUNS[i % 10], NOUNS[i // 10 % 10], VERBS[i % 7]
        yield {
            "instruction": f"Explain topic {i} about {first}",
            "input": "",
            "output": f"It {verb} water or {second} every single day. More.",
        }


@pytest.mark.parametrize("pair", [*SEEN, *HELD_OUT])
def test_a_demonstration_satisfies_its_prompt_and_violates_the_rejected_ones(pair):
    for seed in range(20):
        example = constrained(ROW, pair, random.Random(seed))
        parts = read(example["instruction_id_list"], example["kwargs"], "row")
        assert outcomes(parts, example["response"]) == [True, True]
        assert example["prompt"].startswith("Name a benefit of meditation. ")
        assert 2 <= len(example["rejected_prompt"]) <= 4
        assert example["prompt"] not in example["rejected_prompt"]


def test_an_answer_that_offers_nothing_gives_no_example():
    assert constrained(ROW | {"answer": "It is so, as I see it."}, ("contain", "avoid"), random.Random(0)) is None


def test_answers_are_first_sentences_of_five_to_twenty_words():
    assert first_sentence(" One here. Two.\nThree") == "One here."
    assert content_words("Which things Raise bread, and why bread?") == [
        "things",
        "bread",
    ]  # "Raise" begins with a capital, "hich" is no word
    data = [
        {"instruction": "A  b?", "input": "", "output": text} for text in ("Too short.", "This one has just five.", "No stop is at its end")
    ]
    assert [row["answer"] for row in usable(data, "x")] == ["This one has just five."]


def test_no_instruction_is_in_two_parts_and_training_never_shows_the_held_out_pairs():
    files = prepare({"alpaca": list(rows())}, excluded=["Explain topic 7 about bridges"])
    assert {name: len(part) for name, part in files.items()} == {
        "test": TEST, "dev": DEV, "prompts": 1000, "demos_1000": 1000, "demos_200": 200, "demos_50": 50,
    }  # fmt: skip
    topics = {name: {row["prompt"].split()[2] for row in files[name]} for name in ("test", "dev", "prompts")}
    assert not topics["test"] & topics["dev"]
    assert not topics["prompts"] & (topics["test"] | topics["dev"])
    assert "7" not in set().union(*topics.values())
    held_out = {"+".join(sorted(pair)) for pair in HELD_OUT}
    assert not held_out & {row["families"] for name in ("dev", "prompts") for row in files[name]}
    assert [row["families"] in held_out for row in files["test"]] == [True] * (TEST // 2) + [False] * (TEST // 2)
    assert all("response" not in row for row in files["prompts"])


def cell(rate, reward=0.0):
    """A cell in which half of the prompts are held out; `rate` of the answers pass."""
    values = [rate, rate / 2, rate, rate]
    test = dict.fromkeys(("passed", "constraints", "unique", "self_bleu", "words", "finished", "nll"), values) | {"held_out": [1, 1, 0, 0]}
    curve = {"reward": [0.0] * 5 + [reward] * 5, "verified": [0.1] * 5 + [0.2] * 5}
    numbers = {"score": 0.1, "auc": 0.6, "text_nll": 3.0, "answer_nll": 2.0, "cpu_seconds": 60.0}
    return {"dev": [rate] * 2, "test": test, "curve": curve} | numbers


def finished():
    rates = {"sft": 0.2, "frozen_sft": 0.3, "gapo": 0.5}
    return {f"{arm}-200-{seed}": cell(rate, 2.0) for arm, rate in rates.items() for seed in range(2)} | {"base-0": cell(0.1)}


def test_the_summary_by_hand():
    summary = summarise(finished())
    assert summary["best"]["200"]["arm"] == "gapo"
    assert summary["rates"]["200"]["gapo"]["held-out pairs"]["mean"] == pytest.approx(0.375)  # (0.5 + 0.25) / 2
    # gapo - frozen_sft by prompt: 0.2, 0.1, 0.2, 0.2
    difference = summary["differences"]["200"]["gapo - frozen_sft"]["all"]
    assert difference["difference"] == pytest.approx(0.175)
    assert difference["low"] > 0
    assert summary["target"]["reached"]
    assert summary["hacking"]["200"]["gapo"] == [pytest.approx({"reward": 2.0, "verified": 0.1})] * 2


def test_a_target_that_is_missed_says_so_and_arms_without_a_partner_have_no_difference():
    cells = {name: cell(0.3) for name in ("gapo-50-0", "frozen_sft-50-0", "frozen_sft-200-0")}
    summary = summarise(cells)
    assert not summary["target"]["reached"]
    assert list(summary["target"]["regimes"]) == ["50"]
    assert summary["differences"]["200"] == {}


def test_the_tables_show_every_arm_and_the_verdict():
    found = {"summary": summarise(finished()), "cells": finished(), "command": "c", "cpu_hours": 1.0, "missing": ["gapo-50-0"]}
    table = tables_smollm_gapo.smollm_gapo(found)
    assert "| 200 | GAPO (2) | 0.500 ± 0.000 |" in table
    assert "Target, `gapo` ahead of `frozen_sft` in one regime with an interval above zero: reached (200 demonstrations +0.175" in table
    assert "cells still missing: gapo-50-0" in table
    assert tables_smollm_gapo.short(found).count("\n") == 7


def test_every_arm_reads_the_demonstrations_and_is_named_in_the_tables():
    config = configuration.read(str(ROOT / "configs" / "smollm2" / "gapo.yaml"))
    assert {arm: tables_smollm_gapo.NAMES[arm] for arm in ARMS} == {name: arm.label for name, arm in ARMS.items()}
    for arm in ARMS.values():
        sources = {*config["sources"], *arm.sections.get("sources", {})}
        assert {term["source"] for term in arm.terms.values()} <= sources
        assert set(arm.sizes) <= set(SIZES)
