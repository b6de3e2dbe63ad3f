"""Real instructions with constraints that a rule verifies, and demonstrations that satisfy them.

    python benchmarks/prepare_smollm_gapo.py --output out/smollm_gapo

An instruction of Alpaca (if_alpaca5k) or LIMA (if_lima) with the first sentence of its answer, 5 to 20 words. Two constraints of different
families are added, in words, and under IFEval's names in `instruction_id_list` and `kwargs`; both are read off the answer, or the answer
is edited to have them, so the demonstration satisfies its prompt:

    length     fewer than its words and up to three more, or at least its words and up to two fewer
    contain    a word of the answer that the instruction does not have
    avoid      a word of the instruction that the answer does not have
    format     the answer in lower case, in double quotes, or with a last sentence

    demos_<n>.jsonl   n = 1000, 200, 50, each part of the one before       {prompt, response, rejected_prompt, instruction_id_list, kwargs}
    prompts.jsonl     the prompts of the 1,000: what policies answer in training
    dev.jsonl         40 prompts: what arms are chosen on
    test.jsonl        120 prompts, half of them with pairs of families that training never shows (length + contain, avoid + format)

`rejected_prompt` holds prompts that the response violates, with one constraint changed (arXiv:2503.20194). No instruction is in two parts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smollm_measure import alpaca_held_out

from advalign import data as loading
from advalign.functional.instruction_rules import count_words
from advalign.functional.instructions import outcomes, read

SEEN = (("length", "format"), ("contain", "format"), ("length", "avoid"), ("contain", "avoid"))
HELD_OUT = (("length", "contain"), ("avoid", "format"))
SIZES = (1000, 200, 50)
DEV, TEST = 40, 120
LONGEST = 16
"""Words of an instruction."""
SHORTEST_ANSWER, LONGEST_ANSWER = 5, 20
"""Words of an answer."""
LAST = "I hope this helps."
STOPWORDS = frozenset(
    """about above after again also because been before being between both could does doing down during each from further have having here
    into itself just like made make more most much need only other over same should some such than that their them then there these they
    this those through under until very want were what when where which while will with would write your give name describe explain
    list""".split()
)


class Constraint(NamedTuple):
    """One constraint of a prompt."""

    words: str
    """What the prompt says."""
    id: str
    """IFEval's name."""
    kwargs: Mapping[str, Any]
    """Its arguments."""

    def holds(self, text: str) -> bool:
        """Whether a text satisfies it."""
        return outcomes(read([self.id], [self.kwargs], self.id), text) == [True]


def length(number: int, relation: str) -> Constraint:
    word = "fewer than" if relation == "less than" else "at least"
    return Constraint(f"Use {word} {number} words.", "length_constraints:number_words", {"relation": relation, "num_words": number})


def contain(word: str) -> Constraint:
    return Constraint(f'Use the word "{word}".', "keywords:existence", {"keywords": [word]})


def avoid(word: str) -> Constraint:
    return Constraint(f'Do not use the word "{word}".', "keywords:forbidden_words", {"forbidden_words": [word]})


FORMATS = {
    "lower": Constraint("Write in lowercase only.", "change_case:english_lowercase", {}),
    "quotes": Constraint("Put the answer in double quotes.", "startend:quotation", {}),
    "last": Constraint(f'End with "{LAST}"', "startend:end_checker", {"end_phrase": LAST}),
}
EDITS = {"lower": str.lower, "quotes": lambda text: f'"{text}"', "last": lambda text: f"{text} {LAST}"}


def content_words(text: str) -> list[str]:
    """Words of at least four lower-case letters that say something, each once."""
    words = re.findall(r"[a-z]{4,}", text)
    return [word for word in dict.fromkeys(words) if word not in STOPWORDS and re.search(rf"\b{word}\b", text)]


def first_sentence(text: str) -> str:
    """Up to the first end of a sentence or line."""
    return re.split(r"(?<=[.!?])\s|\n", text.strip())[0].strip()


def usable(rows: Sequence[Mapping[str, str]], source: str) -> list[dict[str, str]]:
    """{instruction, answer, source} of short instructions without an input, whose answer begins with a short plain sentence."""
    chosen = []
    for row in rows:
        instruction, answer = " ".join(row["instruction"].split()), first_sentence(row["output"])
        short = SHORTEST_ANSWER <= count_words(answer) <= LONGEST_ANSWER and len(instruction.split()) <= LONGEST
        plain = instruction.isascii() and answer.isascii() and answer.endswith((".", "!", "?")) and '"' not in answer + instruction
        if not row["input"] and short and plain:
            chosen.append({"instruction": instruction, "answer": answer, "source": source})
    return list({row["instruction"].lower(): row for row in chosen}.values())


def constrained(row: Mapping[str, str], pair: Sequence[str], rng: random.Random) -> dict[str, Any] | None:
    """The example of an instruction with constraints of two families; None where its answer has nothing to read one off."""
    form = rng.choice(sorted(FORMATS))
    answer = EDITS[form](row["answer"]) if "format" in pair else row["answer"]
    options = {family: _options(family, row["instruction"], answer, form, rng) for family in pair}
    if not all(right and wrong for right, wrong in options.values()):
        return None
    chosen = {family: rng.choice(right) for family, (right, _) in options.items()}
    order = rng.sample(list(pair), len(pair))
    rejected = [
        _prompt(row["instruction"], [(chosen | {family: wrong})[name] for name in order])
        for family, (_, wrongs) in options.items()
        for wrong in rng.sample(wrongs, min(2, len(wrongs)))
    ]
    assert all(constraint.holds(answer) for constraint in chosen.values())
    return {
        "prompt": _prompt(row["instruction"], [chosen[name] for name in order]),
        "response": answer,
        "rejected_prompt": rejected,
        "instruction_id_list": [chosen[name].id for name in order],
        "kwargs": [dict(chosen[name].kwargs) for name in order],
        "families": "+".join(sorted(pair)),
        "source": row["source"],
    }


def _options(family: str, instruction: str, answer: str, form: str, rng: random.Random) -> tuple[list[Constraint], list[Constraint]]:
    """(constraints that the answer satisfies, constraints that it violates) of one family."""
    number, answered, asked = count_words(answer), content_words(answer), content_words(instruction)
    others = [word for word in asked if not re.search(rf"\b{word}\b", answer, re.IGNORECASE)]
    if family == "length":
        right = [length(number + more, "less than") for more in (1, 2, 3)] + [length(number - fewer, "at least") for fewer in (0, 1, 2)]
        wrong = [length(number - fewer, "less than") for fewer in (0, 1, 2)] + [length(number + more, "at least") for more in (2, 4, 6)]
    elif family == "contain":
        right = [contain(word) for word in answered if word not in asked]
        wrong = [contain(word) for word in others]
    elif family == "avoid":
        right, wrong = [avoid(word) for word in others], [avoid(word) for word in answered]
    else:
        right, wrong = [FORMATS[form]], [other for name, other in sorted(FORMATS.items()) if name != form]
    return [c for c in right if c.holds(answer)], [c for c in wrong if not c.holds(answer)]


def _prompt(instruction: str, constraints: Sequence[Constraint]) -> str:
    stop = "" if instruction.endswith((".", "?", "!", ":")) else "."
    return " ".join([instruction + stop, *(constraint.words for constraint in constraints)])


def prepare(
    rows: Mapping[str, Sequence[Mapping[str, str]]], excluded: Sequence[str] = (), seed: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Everything by file name. `rows`: {source: its rows}; `excluded`: instructions that are left out."""
    rng, out = random.Random(seed), {" ".join(text.split()).lower() for text in excluded}
    pool = [row for source, data in rows.items() for row in usable(data, source) if row["instruction"].lower() not in out]
    pool = list({row["instruction"].lower(): row for row in pool}.values())
    rng.shuffle(pool)
    wanted = [*[HELD_OUT] * (TEST // 2), *[SEEN] * (TEST - TEST // 2 + DEV + SIZES[0])]
    examples: list[dict[str, Any]] = []
    for row in pool:
        if len(examples) == len(wanted):
            break
        pairs = list(wanted[len(examples)])
        example = next((e for pair in rng.sample(pairs, len(pairs)) if (e := constrained(row, pair, rng)) is not None), None)
        examples += [] if example is None else [{"id": f"gapo-{len(examples)}"} | example]
    train = examples[TEST + DEV :]
    return {
        "test": examples[:TEST],
        "dev": examples[TEST : TEST + DEV],
        "prompts": [{name: value for name, value in e.items() if name not in ("response", "rejected_prompt")} for e in train],
        **{f"demos_{size}": train[:size] for size in SIZES},
    }


def prepared(folder: Path) -> Path:
    """The folder with all files, written where they are missing."""
    if not (folder / "demos_50.jsonl").exists():
        data = os.environ["ADVALIGN_DATA"]
        rows = {"alpaca": loading.rows(f"{data}/if_alpaca5k/train.jsonl.gz"), "lima": loading.rows(f"{data}/if_lima/train.jsonl.gz")}
        folder.mkdir(parents=True, exist_ok=True)
        for name, examples in prepare(rows, [row["prompt"] for row in alpaca_held_out()]).items():
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/smollm_gapo")
    prepared(Path(parser.parse_args().output))
