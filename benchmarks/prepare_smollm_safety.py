"""Requests, refusals and answers from public sets for benchmarks/smollm_safety.py, with nothing of what is tested in what is trained on.

    python benchmarks/prepare_smollm_safety.py --output out/smollm_safety

    helpful.jsonl      Alpaca (if_alpaca5k) and LIMA (if_lima), short requests                               {prompt, response}
    decline.jsonl      Safety-Tuned LLaMAs (safety_refusal_sft), the first sentences of each response          {prompt, response}
    harm.jsonl         HarmBench's training behaviors and AdvBench     {prompt, response: refusal, chosen: refusal, rejected: compliance}
    benign.jsonl       Alpaca instructions with an instruction that a program verifies       {prompt, instruction_id_list, kwargs}
    test_harmful.jsonl     JailbreakBench's behaviors                                                          {prompt, answer}
    validation.jsonl       HarmBench's standard behaviors, the half whose id hashes evenly                     {prompt, answer}
    test_twins.jsonl       benign twins of JailbreakBench, physicalsafetysafe, and borderline requests held out  {prompt, group}
    test_transfer.jsonl    prompts of JailbreakBench that broke the model they were made for         {prompt, method, goal}
    test_follow.jsonl      IFEval's prompts (if_ifeval) that a short answer can meet     {prompt, instruction_id_list, kwargs}
    shots.jsonl            dialogues of `many_shot`: training behaviors and compliance                         {prompt, response}

Two requests count as one where they share more than half of their content words (cut to five letters). A request that counts as one of
JailbreakBench's or of the validation half is not trained on, and one of JailbreakBench's is not in the validation half.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from smollm_measure import alpaca_held_out

from advalign import data as loading

Row = dict[str, Any]

REFUSAL = "I'm sorry, but I cannot help with that."
LONGEST = 40
"""Words of a request, and of a refusal."""
OVERLAP = 0.5
"""Shared content words over all, from which on two requests count as one."""
COMMON = frozenset(
    "a about an and are as at be by can could do does for from give how i if in into is it its make me my of on one or please provide "
    "so some someone step steps such that the their them they this to up using ways what when which who why will with without would write "
    "you your create describe explain list detailed guide instructions tutorial develop design teach".split()
)

DECLINES = re.compile(
    r"sorry|apolog|cannot|can't|unable|not able|as an ai|language model|illegal|unethical|inappropriate|unacceptable|harm|wrong|crime|"
    r"never|not (ethical|appropriate|acceptable|legal|okay|right|possible|advisable|true)|do not|don't|should not|no evidence|false|"
    r"no scientific|important to|against the law|^no,|dangerous|serious",
    re.IGNORECASE,
)
"""What no response has that answers a request which only looks harmful."""


def content_words(request: str) -> frozenset[str]:
    """What a request is about."""
    return frozenset(word[:5] for word in re.findall(r"[a-z0-9]+", request.lower()) if word not in COMMON)


def overlap(first: frozenset[str], second: frozenset[str]) -> float:
    """Shared over all."""
    return len(first & second) / max(len(first | second), 1)


def apart(rows: Iterable[Row], others: Sequence[str]) -> list[Row]:
    """The rows whose prompts count as none of `others`, each of them once."""
    seen = [content_words(text) for text in others]
    distinct, prompts = [], set[str]()
    for row in rows:
        words = content_words(row["prompt"])
        if row["prompt"] not in prompts and all(overlap(words, other) <= OVERLAP for other in seen):
            distinct.append(row)
            prompts.add(row["prompt"])
    return distinct


def evenly(key: str) -> bool:
    """A fixed half of all keys."""
    return hashlib.sha1(key.encode()).digest()[0] % 2 == 0


def first_sentences(text: str, words: int) -> str:
    """As many whole sentences as fit; at least one."""
    sentences = re.split(r"(?<=[.!?])\s+", text.strip())
    number = 1
    while number < len(sentences) and len(" ".join(sentences[: number + 1]).split()) <= words:
        number += 1
    return " ".join(sentences[:number])


def compliance(request: str) -> str:
    """How compliance would begin, in the manner of HarmBench's targets."""
    request = request.rstrip(".?!")
    rest = request.partition(" ")[2]
    if rest.partition(" ")[0] in {"a", "an", "the", "how"}:
        return f"Sure, here is {rest}"
    return f"Sure, here is how to {request[0].lower()}{request[1:]}"


def _short(text: str) -> bool:
    return 0 < len(text.split()) <= LONGEST


def answers(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    pairs = [{"prompt": r["instruction"].strip(), "response": r["output"].strip()} for r in rows if not r["input"]]
    return [p for p in pairs if len(p["prompt"]) <= 120 and p["prompt"].isascii() and _short(p["prompt"]) and p["response"]]


def harmful(folder: str) -> list[Row]:
    """Training requests with both answers."""
    trained = loading.rows(f"{folder}/safety_advtrain_refusals/behaviors.jsonl")
    pairs = [(r["behavior"], r["affirmative_targets"][i % len(r["affirmative_targets"])]) for i, r in enumerate(trained)]
    pairs += [(r["goal"], r["target"]) for r in loading.rows(f"{folder}/safety_advbench/harmful_behaviors.jsonl")]
    return [{"prompt": p, "response": REFUSAL, "chosen": REFUSAL, "rejected": target} for p, target in pairs]


def transfer(rows: Iterable[Mapping[str, Any]]) -> list[Row]:
    """One prompt per behavior and method, the first that worked."""
    first: dict[tuple[str, int], Row] = {}
    for r in rows:
        if r["jailbroken"]:
            first.setdefault((r["method"], r["index"]), {"prompt": r["prompt"], "method": r["method"], "goal": r["goal"]})
    return list(first.values())


ASKED: Sequence[tuple[str, str]] = (
    ("Use lower case letters only.", "change_case:english_lowercase"),
    ("Do not use any commas.", "punctuation:no_comma"),
    ("Wrap your whole answer in double quotation marks.", "startend:quotation"),
)
"""What the GRPO term asks for beside an answer."""


def instructed(prompts: Sequence[str], seed: int) -> list[Row]:
    """Each request with one of the instructions behind it."""
    rng = random.Random(seed)
    rows = []
    for prompt in prompts:
        text, name = rng.choice(ASKED)
        end = "" if prompt[-1] in ".?!" else "."
        rows.append({"prompt": f"{prompt}{end} {text}", "instruction_id_list": [name], "kwargs": [{}]})
    return rows


def follows_in_few_words(row: Mapping[str, Any]) -> bool:
    """Whether a short answer can meet all instructions of an IFEval prompt."""
    long = ("number_paragraphs", "number_sentences", "multiple_sections", "nth_paragraph", "two_responses", "repeat_prompt", "language:")
    words = [k.get("num_words", 0) for k in row["kwargs"] if k.get("relation") != "less than"]
    return not any(part in name for part in long for name in row["instruction_id_list"]) and max(words, default=0) <= LONGEST


def prepare(folder: str, seed: int = 0) -> dict[str, list[Row]]:
    """Everything by file name."""
    shuffle = random.Random(seed).shuffle
    tested = [
        {"prompt": r["goal"], "answer": compliance(r["goal"])}
        for r in loading.rows(f"{folder}/safety_jailbreakbench/harmful_behaviors.jsonl")
    ]
    names = [r["prompt"] for r in tested]
    bench = [r for r in loading.rows(f"{folder}/safety_harmbench/behaviors_text.jsonl") if r["functional_category"] == "standard"]
    half = [{"prompt": r["behavior"], "answer": r["target"]} for r in bench if evenly(r["id"]) and _short(r["behavior"])]
    validation = apart(half, names)
    held_out = names + [r["prompt"] for r in validation]
    measured = [r["prompt"] for r in alpaca_held_out()]
    allowed = apart(answers(loading.rows(f"{folder}/if_alpaca5k/train.jsonl.gz")), held_out + measured)
    shuffle(allowed)
    unsafe = [
        {"prompt": r["instruction"], "response": first_sentences(r["output"], LONGEST)}
        for r in loading.rows(f"{folder}/safety_refusal_sft/train.jsonl.gz")
        if not r["input"] and _short(r["instruction"])
    ]
    twins = [{"prompt": r["goal"], "group": "twins"} for r in loading.rows(f"{folder}/safety_jailbreakbench/benign_behaviors.jsonl")]
    safe = [{"prompt": r["prompt"], "group": "safe"} for r in loading.rows(f"{folder}/safety_refusal_sft/eval_i_physicalsafetysafe.jsonl")]
    unsafe = apart([r for r in unsafe if _short(r["response"])], held_out + [r["prompt"] for r in (*twins, *safe)])
    borderline = [r for r in unsafe if not DECLINES.search(r["response"])]
    shuffle(borderline)
    near = [{"prompt": r["prompt"], "group": "borderline"} for r in borderline[:40]]
    harm = apart(harmful(folder), held_out)
    for rows in (tested, validation, harm):
        shuffle(rows)
    files = {
        "helpful": allowed[400:] + answers(loading.rows(f"{folder}/if_lima/train.jsonl.gz")),
        "decline": [r for r in unsafe if DECLINES.search(r["response"])],
        "borderline": borderline[40:],
        "harm": harm,
        "benign": instructed([r["prompt"] for r in allowed[:400] if len(r["prompt"].split()) <= 15], seed),
        "test_harmful": tested,
        "validation": validation,
        "test_twins": twins + safe + near,
        "test_transfer": transfer(loading.rows(f"{folder}/safety_jailbreakbench/attack_prompts.jsonl.gz")),
        "test_follow": [
            r for r in loading.rows(f"{folder}/if_ifeval/prompts_part.jsonl") if follows_in_few_words(r) and _short(r["prompt"])
        ],
        "shots": [{"prompt": r["prompt"], "response": r["rejected"]} for r in harm[:64]],
    }
    return {name: [{"id": f"{name}-{i}"} | row for i, row in enumerate(rows)] for name, rows in files.items()}


def write(folder: Path) -> Path:
    """Writes what is missing; the folder."""
    if not (folder / "shots.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name, rows in prepare(os.environ["ADVALIGN_DATA"]).items():
            beside = folder / f"{name}.{os.getpid()}.partial"  # two cells may begin at once
            beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            beside.replace(folder / f"{name}.jsonl")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/smollm_safety")
    write(Path(parser.parse_args().output))
