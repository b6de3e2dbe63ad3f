"""TinyStories in three parts that share no line: text to learn to write from, sentences to be asked for, and text of a discriminator.

python benchmarks/prepare_stories.py --output out/stories

base.jsonl        plain text in pieces, of the first half of the stories        {prompt, response}
half.jsonl        the first half of that: what a smaller student has read
task.txt          the next fifth, one sentence per line: what the task `sentences` asks for
discriminator.jsonl       the rest, in pieces: what the language model that measures perplexity has read
tokenizer/        2,048 byte pairs, with a chat template that puts one token between request and answer
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prepare_rule_lm import pieces, sentences, source

from advalign.models import scratch

SHARES = (0.55, 0.75)  # of the text: where the part for the task begins, and the discriminator's


def prepare(text: str) -> dict[str, list[dict[str, Any]]]:
    """Everything by file name. Sentences come in story order, so parts share stories only at their borders."""
    lines = sentences(text)
    first, second = (int(len(lines) * share) for share in SHARES)
    return {
        "base": pieces(lines[:first]),
        "half": pieces(lines[: first // 2]),
        "asked.txt": apart(lines[:first]),
        "half.txt": apart(lines[: first // 2]),
        "task.txt": apart(lines[first:second]),
        "discriminator": pieces(lines[second:]),
    }


def apart(lines: Sequence[str]) -> list[dict[str, Any]]:
    return [{"text": line} for line in dict.fromkeys(lines)]


def write(folder: Path, files: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        plain = name.endswith(".txt")
        lines = [row["text"] if plain else json.dumps({"id": f"{name}-{i}"} | row) for i, row in enumerate(rows)]
        (folder / (name if plain else f"{name}.jsonl")).write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = scratch.train_tokenizer("bpe", words(files), size=2048)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}<sep>"
    tokenizer.save_pretrained(folder / "tokenizer")


def words(files: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterable[str]:
    """What the tokenizer is built from."""
    yield from (row["response"] for row in files["base"])
    yield from (row["text"] for row in files["task.txt"])
    yield from ("story:", *(f"with one, two, at most {n} words:" for n in range(20)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="out/stories")
    write(Path(parser.parse_args().output), prepare(source()))
