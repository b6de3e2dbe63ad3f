"""Word problems with a form that the answer must have, as conversations, split into files.

    python benchmarks/prepare_smollm_headline.py --output out/smollm_headline        (reads $ADVALIGN_DATA/math_mawps)

The problems of `prepare_smollm_rl` with its splits (warm, train, valid, test). The system prompt asks for one line: an equation and a
sentence, "70 - 27 = 43. The answer is 43." An answer is `right` where its final number is, and `solved` where it also has that form.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import prepare_smollm_rl

from advalign.rewards.exact_answer import grade
from advalign.types import Example

SPLITS = ("warm", "train", "valid", "test")
SYSTEM = "Answer in one line, like this: 5 + 3 = 8. The answer is 8."
FORM = re.compile(r"[0-9]+ [-+*/] [0-9]+ = [0-9]+\. The answer is [0-9]+\.")
"""The pattern of the reward in configs/smollm2/headline.yaml."""


def asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `prepare_smollm_rl` under the own system prompt, with the own form of the worked response."""
    prompt = [{"role": "system", "content": SYSTEM}, row["prompt"][-1]]
    return {**row, "prompt": prompt, "response": f"{row['response']}. The answer is {row['answer']}."}


def prepare(data: Path, output: Path) -> dict[str, int]:
    """Writes the files; {file: its rows}."""
    rows = prepare_smollm_rl.mawps(data / "math_mawps")
    output.mkdir(parents=True, exist_ok=True)
    for name in SPLITS:
        partial = output / f"{name}.{os.getpid()}.partial"
        partial.write_text("".join(json.dumps(asked(row)) + "\n" for row in rows[name]), encoding="utf-8")
        partial.replace(output / f"{name}.jsonl")  # cells prepare at the same time
    return {name: len(rows[name]) for name in SPLITS}


def examples(folder: Path, split: str, number: int) -> list[Example]:
    """The first problems of a split, whose order is that of the data; each verifies whether it is solved."""
    lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:number]
    return [_example(json.loads(line)) for line in lines]


def right(answer: str, text: str) -> bool:
    """Whether the final number of a text is the answer, whatever its form."""
    return grade(Example(prompt="", answer=answer), text, tolerance=1e-6) == 1.0


def has_form(text: str) -> bool:
    return FORM.fullmatch(text.strip()) is not None


def _example(row: Mapping[str, Any]) -> Example:
    def solved(text: str) -> float:
        return float(has_form(text) and right(row["answer"], text))

    fields = {"prompt": row["prompt"], "answer": row["answer"], "id": row["id"], "verify": solved}
    return Example.from_mapping(fields | {"meta": {"response": row["response"]}})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/smollm_headline"))
    output = parser.parse_args(arguments).output
    for name, number in prepare(Path(os.environ.get("ADVALIGN_DATA", "data")), output).items():
        print(f"{name}: {number}")


if __name__ == "__main__":
    main()
