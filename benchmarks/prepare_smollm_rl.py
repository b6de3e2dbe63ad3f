"""Word problems with one right equation, as conversations, split into files.

    python benchmarks/prepare_smollm_rl.py --output out/smollm_rl        (reads $ADVALIGN_DATA)

Problems are those of MAWPS (SingleOp, AddSub) that `prepare_mawps.problem` accepts: whole numbers up to 99, and exactly ONE operation on
two numbers of the question that gives the answer. It is the worked response, "70 - 27 = 43". The split is a hash of the question with
numbers and names masked, so that problems which differ in nothing else lie on one side:

    warm.jsonl      18 %: worked, for the short warm start that all arms share
    train.jsonl     42 %: problems of the policy gradient (their worked responses are read by the SFT arm alone)
    noisy.jsonl     train.jsonl, every problem as it is and under one kind of noise (typos, distractor, upper, lines or words)
    valid.jsonl     15 %: settings and arms are chosen on it            } and valid_<kind>.jsonl, test_<kind>.jsonl, the same under
    test.jsonl      25 %: read after everything is chosen               } every kind of `smollm_rl_noise`
    asdiv.jsonl     100 such problems of ASDiv, none of which equals one of MAWPS but for numbers and names: transfer
    gsm8k.jsonl     60 of GSM8K with at most two calculations and 40 words that one operation solves: its easiest
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prepare_mawps import Problem, problem, read
from smollm_rl_noise import KINDS, noisy

SYSTEM = "Answer with one equation."
OWN = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What the model's template writes where a conversation has no system prompt."""
SHARES = {"test": 25, "valid": 15, "warm": 18, "train": 42}
TRANSFER = {"asdiv": 100, "gsm8k": 60}
SEEN = ("typos", "distractor", "upper", "lines", "words")
"""Kinds of noise in noisy.jsonl."""

ONE_STEP = ("Addition", "Subtraction", "Multiplication", "Common-Division", "Sum", "Difference")
"""Types of ASDiv's problems that one operation solves."""

Row = dict[str, Any]


def tidy(question: str) -> str:
    """No blanks before punctuation, one blank elsewhere."""
    return re.sub(r"\s+([.?!,])", r"\1", " ".join(question.split()))


def masked(question: str) -> str:
    """Words in small letters, numbers and names masked."""
    text = re.sub(r"\b[A-Z][a-z]+\b", "@", re.sub(r"[0-9][0-9,.]*", "#", question))
    return " ".join(re.findall(r"[a-z@#]+", text.lower()))


def number_of(text: str) -> int:
    return int(hashlib.sha1(text.encode()).hexdigest(), 16)


def split_of(question: str) -> str:
    """Which file a problem of MAWPS belongs to."""
    share, total = number_of(masked(question)) % 100, 0
    for name, size in SHARES.items():
        total += size
        if share < total:
            return name
    raise AssertionError("shares add up to 100")


def row(question: str, worked: Problem, name: str, system: str = SYSTEM) -> Row:
    prompt = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    return {"prompt": prompt, "answer": str(worked.answer), "response": worked.response, "id": name}


def under(rows: Iterable[Row], kind: str, split: str = "test") -> list[Row]:
    """The rows with their questions under noise; "system": under the model's own system prompt."""
    changed = []
    for old in rows:
        system, user = (turn["content"] for turn in old["prompt"])
        question = user if kind == "system" else noisy(user, kind, old["id"], split)
        prompt = [{"role": "system", "content": OWN if kind == "system" else system}, {"role": "user", "content": question}]
        changed.append(old | {"prompt": prompt})
    return changed


def mawps(folder: Path) -> dict[str, list[Row]]:
    rows: dict[str, list[Row]] = {name: [] for name in SHARES}
    seen = set()
    for i, (question, answer) in enumerate(read(folder)):
        question = tidy(question)
        worked = problem(question, answer)
        if isinstance(worked, Problem) and question not in seen:
            seen.add(question)
            rows[split_of(question)].append(row(question, worked, f"mawps-{i}"))
    return rows


def transfer(problems: Iterable[tuple[str, str]], known: set[str], name: str) -> list[Row]:
    """Problems that one operation solves, TRANSFER[name] of them by a hash."""
    rows = []
    for i, (question, answer) in enumerate(problems):
        question = tidy(question)
        worked = problem(question, float(answer)) if re.fullmatch(r"[0-9]+", answer) else ""
        if isinstance(worked, Problem) and masked(question) not in known:
            rows.append(row(question, worked, f"{name}-{i}"))
    return sorted(rows, key=lambda r: number_of(r["prompt"][1]["content"]))[: TRANSFER[name]]


def asdiv(folder: Path) -> Iterator[tuple[str, str]]:
    for line in (folder / "all.jsonl").read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        if content["solution_type"] in ONE_STEP:
            yield content["question"], content["answer"]


def gsm8k(folder: Path) -> Iterator[tuple[str, str]]:
    with gzip.open(folder / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        for content in map(json.loads, file):
            if content["answer"].count("<<") <= 2 and len(content["question"].split()) <= 40:
                yield content["question"], content["final"]


def prepare(data: Path, output: Path) -> dict[str, int]:
    """Writes the files; {file: its rows}."""
    files = mawps(data / "math_mawps")
    known = {masked(r["prompt"][1]["content"]) for rows in files.values() for r in rows}
    train = files["train"]
    mixed = [under([r], SEEN[i % len(SEEN)], "train")[0] | {"id": f"{r['id']}-noisy"} for i, r in enumerate(train)]
    files |= {"noisy": [*train, *mixed]}
    files |= {f"{split}_{kind}": under(files[split], kind) for split in ("valid", "test") for kind in (*KINDS, "system")}
    files["asdiv"] = transfer(asdiv(data / "math_asdiv"), known, "asdiv")
    files["gsm8k"] = transfer(gsm8k(data / "math_gsm8k"), known, "gsm8k")
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        partial = output / f"{name}.{os.getpid()}.partial"
        partial.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        partial.replace(output / f"{name}.jsonl")  # cells prepare at the same time
    return {name: len(rows) for name, rows in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/smollm_rl"))
    output = parser.parse_args().output
    for name, number in prepare(Path(os.environ.get("ADVALIGN_DATA", "data")), output).items():
        print(f"{name}: {number}")


if __name__ == "__main__":
    main()
