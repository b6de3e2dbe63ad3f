"""Conversations for configs/smollm2/demo.yaml: word problems and requests, from public sets where they are at hand.

    python benchmarks/prepare_demo_chat.py --output out/demo_chat/data

    demos_train.jsonl       what the policy imitates under attack: refusals, answers to benign requests, worked problems   {messages, kind}
    worked_*.jsonl          the worked problems alone, the real texts of the discriminator                                {messages}
    problems_*.jsonl        problems with their answers only, for the verifiable reward                                   {prompt, answer}
    unsafe_*.jsonl          requests to refuse; the answer is how an attacker wants the response to begin                 {prompt, answer}
    benign_*.jsonl          their benign twins                                                                            {prompt}

Splits: train; validation, on which settings are chosen; test. With ADVALIGN_DATA: MAWPS and ASDiv, refusals of Safety-Tuned LLaMAs, short
answers of Alpaca, and JailbreakBench's requests and twins, which are held out. Without it, each of the two groups (problems, requests)
is self-written: problems by template, the held-out ones by templates of their own, and demo_chat_requests.jsonl. Its 64 benign requests
with answers are trained on either way, as near misses. A worked problem is "70 - 27 = 43. The answer is 43."
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prepare_mawps import Problem, problem, side
from prepare_safety_lm import same

from advalign import data as loading
from advalign.functional.answers import final_answer
from advalign.functional.answers import same as equal

REQUESTS = Path(__file__).parent / "demo_chat_requests.jsonl"
CALCULATE = "Calculate, then end with: The answer is N."
HELP = "You are a helpful assistant."
FORM = r"(?s).*\bThe answer is -?[0-9]+\.?"
"""Of the whole response, outer white space aside."""
COMPLIANCE = "Sure, here is"
REFUSALS = ("I'm sorry, but I cannot help with {}.", "I'm sorry, but I can't assist with {}, because it harms people.")
LONGEST, SHORTEST = 30, 4  # words of a question, a request or an answer; of the answer to a benign request
HELD_OUT = 40  # of each held-out split
SPLITS = ("train", "validation", "test")
NAMES = "Anna Ben Carla David Emma Felix Grace Henry Ida Jack Kate Leo Mia Noah Olga Paul".split()
THINGS = "apples pencils stickers marbles cookies shells books balloons coins cards".split()
TEMPLATES: Mapping[str, Sequence[tuple[str, str]]] = {
    "train": (
        ("{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have now?", "+"),
        ("There are {a} {t} on the table and {b} {t} in the box. How many {t} are there in all?", "+"),
        ("{n} found {a} {t} on Monday and {b} {t} on Tuesday. How many {t} did {n} find?", "+"),
        ("{n} bought {a} {t}. Then {n} bought {b} more. How many {t} did {n} buy altogether?", "+"),
        ("{n} had {a} {t} and gave {b} of them to {m}. How many {t} does {n} have left?", "-"),
        ("There were {a} {t} in the basket. {n} took {b} of them. How many {t} are still in the basket?", "-"),
        ("{n} has {a} {t} and {m} has {b} {t}. How many more {t} does {n} have than {m}?", "-"),
        ("{n} wants {a} {t} and already has {b}. How many {t} does {n} still need?", "-"),
        ("{n} has {a} boxes with {b} {t} in each box. How many {t} does {n} have?", "*"),
        ("{n} reads {a} pages a day for {b} days. How many pages does {n} read?", "*"),
    ),
    "validation": (
        ("{n} counted {a} {t} and {m} counted {b} {t}. How many {t} did they count together?", "+"),
        ("Of {a} {t}, {n} lost {b}. How many {t} remain?", "-"),
    ),
    "test": (
        ("A shop sold {a} {t} in the morning and {b} {t} in the afternoon. How many {t} did it sell that day?", "+"),
        ("{n} picked {a} {t} and ate {b} of them. How many {t} were not eaten?", "-"),
    ),
}
RANGES = {"+": ((2, 40), (2, 40)), "-": ((12, 60), (2, 11)), "*": ((2, 9), (2, 9))}

Row = dict[str, Any]


def prompt(system: str, text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": system}, {"role": "user", "content": text}]


def demonstration(system: str, text: str, answer: str, kind: str) -> Row:
    return {"messages": [*prompt(system, text), {"role": "assistant", "content": answer}], "kind": kind}


def in_form(text: str) -> bool:
    """Whether a response is in the form asked for."""
    return re.fullmatch(FORM, text.strip()) is not None


def solved(text: str, answer: str) -> bool:
    """Whether a response is in the form asked for and right."""
    return in_form(text) and equal(final_answer(text) or "", answer, 1e-6)


def first_sentence(text: str) -> str:
    return re.split(r"(?<=[.!?])\s|\n", text.strip())[0]


def short(text: str) -> bool:
    return 0 < len(text.split()) <= LONGEST


# --------------------------------------------------------------------------------------------- problems


def written_problems(split: str, number: int, rng: random.Random) -> list[tuple[str, str, str]]:
    """(question, calculation, answer), no question twice; every split has templates of its own."""
    rows: dict[str, tuple[str, str, str]] = {}
    while len(rows) < number:
        template, operation = rng.choice(TEMPLATES[split])
        a, b = (rng.randint(*limits) for limits in RANGES[operation])
        n, m = rng.sample(NAMES, 2)
        question = template.format(n=n, m=m, t=rng.choice(THINGS), a=a, b=b)
        answer = {"+": a + b, "-": a - b, "*": a * b}[operation]
        rows[question] = (question, f"{a} {operation} {b} = {answer}", str(answer))
    return list(rows.values())


def public_problems(folder: Path, rng: random.Random) -> dict[str, list[tuple[str, str, str]]]:
    """Problems of MAWPS and ASDiv that one operation on two of their numbers solves; the split is a hash of the question."""
    splits: dict[str, dict[str, tuple[str, str, str]]] = {"demos": {}, "problems": {}, "test": {}}
    for name in ("math_asdiv/all", "math_mawps/singleop", "math_mawps/addsub"):
        for row in loading.rows(str(folder / f"{name}.jsonl")):
            read = problem(row["question"], float(row["answer"])) if str(row["answer"]).replace(".", "").isdigit() else None
            if isinstance(read, Problem) and len(row["question"].split()) <= LONGEST:
                splits[side(row["question"])][row["question"]] = (row["question"], read.response, str(read.answer))
    rows = {name: list(found.values()) for name, found in splits.items()}
    for found in rows.values():
        rng.shuffle(found)
    return {
        "demos": rows["demos"],
        "train": rows["problems"],
        "validation": rows["test"][:HELD_OUT],
        "test": rows["test"][2 * HELD_OUT : 3 * HELD_OUT],
    }


def problem_files(problems: Mapping[str, Sequence[tuple[str, str, str]]]) -> dict[str, list[Row]]:
    """`demos` are shown with their solutions, those of the other splits come with answers only."""

    def worked(rows: Sequence[tuple[str, str, str]]) -> list[Row]:
        return [demonstration(CALCULATE, q, f"{calculation}. The answer is {a}.", "problem") for q, calculation, a in rows]

    files = {f"problems_{s}": [{"prompt": prompt(CALCULATE, q), "answer": a} for q, _, a in problems[s]] for s in SPLITS}
    return files | {"worked_train": worked(problems["demos"])} | {f"worked_{s}": worked(problems[s]) for s in SPLITS[1:]}


# --------------------------------------------------------------------------------------------- requests


def written_requests() -> list[Row]:
    """64 requests to refuse, each with its topic, a benign twin and an answer to the twin."""
    return [json.loads(line) for line in REQUESTS.read_text(encoding="utf-8").splitlines()]


def request_files(unsafe: Mapping[str, Sequence[str]], benign: Mapping[str, Sequence[str]]) -> dict[str, list[Row]]:
    """The held-out requests and twins by split."""
    files: dict[str, list[Row]] = {}
    for split in SPLITS[1:]:
        files[f"unsafe_{split}"] = [{"prompt": prompt(HELP, text), "answer": COMPLIANCE} for text in unsafe[split]]
        files[f"benign_{split}"] = [{"prompt": prompt(HELP, text)} for text in benign[split]]
    return files


def own_requests(rng: random.Random) -> dict[str, list[Row]]:
    """From demo_chat_requests.jsonl alone: 36 pairs to train on, 12 for validation, 16 for the test."""
    pairs = written_requests()
    rng.shuffle(pairs)
    parts = {"train": pairs[:36], "validation": pairs[36:48], "test": pairs[48:]}
    refusals = [demonstration(HELP, p["unsafe"], form.format(p["topic"]), "refusal") for p in parts["train"] for form in REFUSALS]
    twins = [demonstration(HELP, p["benign"], p["answer"], "answer") for p in parts["train"]]
    held_out = request_files({s: [p["unsafe"] for p in parts[s]] for s in parts}, {s: [p["benign"] for p in parts[s]] for s in parts})
    return held_out | {"refusals": refusals, "answers": twins}


def public_requests(folder: Path, rng: random.Random) -> dict[str, list[Row]]:
    """Refusals and answers to train on; JailbreakBench's behaviors are held out, and nothing near them is trained on."""
    jailbreak = folder / "safety_jailbreakbench"
    harmful, twins = ([r["goal"] for r in loading.rows(str(jailbreak / f"{name}_behaviors.jsonl"))] for name in ("harmful", "benign"))
    order = rng.sample(range(len(harmful)), len(harmful))
    parts = {"validation": order[:HELD_OUT], "test": order[2 * HELD_OUT :]}
    files = request_files({s: [harmful[i] for i in p] for s, p in parts.items()}, {s: [twins[i] for i in p] for s, p in parts.items()})
    asked = [set(text.lower().split()) for text in (*harmful, *twins)]
    refusals = [pair for pair in _short_pairs(folder / "safety_refusal_sft/train.jsonl.gz", asked) if pair[1].startswith("I'm sorry")]
    answers = [pair for pair in _short_pairs(folder / "if_alpaca5k/train.jsonl.gz", asked) if len(pair[1].split()) >= SHORTEST]
    pairs = written_requests()
    refusals = [(p["unsafe"], REFUSALS[i % len(REFUSALS)].format(p["topic"])) for i, p in enumerate(pairs)] + rng.sample(refusals, 300)
    answers = [(p["benign"], p["answer"]) for p in pairs] + rng.sample(answers, 240)
    return files | {
        "refusals": [demonstration(HELP, text, reply, "refusal") for text, reply in refusals],
        "answers": [demonstration(HELP, text, reply, "answer") for text, reply in answers],
    }


def _short_pairs(path: Path, asked: Sequence[set[str]]) -> list[tuple[str, str]]:
    """(instruction, first sentence of its output), both short; without those that are near to a request of `asked`."""
    pairs = [(row["instruction"], first_sentence(row["output"])) for row in loading.rows(str(path)) if not row["input"]]
    return [(text, reply) for text, reply in pairs if short(text) and short(reply) and not same(text.lower(), asked)]


# --------------------------------------------------------------------------------------------- all


def prepare(data: str | None, seed: int = 0) -> tuple[dict[str, list[Row]], dict[str, str]]:
    """Every file's rows, and which set each group of them is from. `data`: the folder of the public sets, or None."""
    rng = random.Random(seed)
    folder = Path(data) if data else None
    has_problems = folder is not None and (folder / "math_mawps").is_dir() and (folder / "math_asdiv").is_dir()
    has_requests = folder is not None and all((folder / n).is_dir() for n in ("safety_refusal_sft", "safety_jailbreakbench", "if_alpaca5k"))
    if folder is not None and has_problems:
        problems = public_problems(folder, rng)
    else:
        sizes = {"validation": HELD_OUT, "test": HELD_OUT}
        problems = {s: written_problems(s, n, rng) for s, n in sizes.items()}
        both = written_problems("train", 600, rng)
        problems |= {"demos": both[:300], "train": both[300:]}
    files = problem_files(problems) | (public_requests(folder, rng) if folder is not None and has_requests else own_requests(rng))
    refusals, answers = files.pop("refusals"), files.pop("answers")
    files["demos_train"] = mixture(((refusals, 1), (answers, 3), (files["worked_train"], 2)), rng)
    used = {
        "problems": "MAWPS and ASDiv" if has_problems else "self-written templates",
        "requests": "Safety-Tuned LLaMAs, Alpaca, JailbreakBench" if has_requests else "self-written list",
    }
    return files, used


def mixture(parts: Sequence[tuple[Sequence[Row], int]], rng: random.Random) -> list[Row]:
    """Rows of every part in proportion to its weight, some repeated; every row is in it."""
    unit = max(-(-len(part) // weight) for part, weight in parts)
    rows = [part[i % len(part)] for part, weight in parts for i in range(weight * unit)]
    rng.shuffle(rows)
    return rows


def write(folder: Path, data: str | None, seed: int = 0) -> dict[str, str]:
    """The files in `folder`; which sets they are from."""
    files, used = prepare(data, seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return used


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/demo_chat/data"))
    for group, name in write(parser.parse_args().output, os.environ.get("ADVALIGN_DATA")).items():
        print(f"{group}: {name}")
