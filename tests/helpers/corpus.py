"""A small corpus for the task `sentences`, made of slots: long and short sentences with an adjective, a noun, a verb and a place."""

import random
from pathlib import Path

ADJECTIVES = "red big old sad wet tiny happy brown".split()
NOUNS = "dog cat bird fox king girl boy bear duck frog".split()
VERBS = "ran sang hid sat fell slept".split()
PLACES = "park house lake tree hill school shop barn".split()
FORMS = ("the {a} {n} {v} near the {p}.", "the {n} {v} by the {p}.", "one day the {a} {n} {v} and then stayed near the {p}.")
FRAME = 8  # words that are no slot: the near by one day and then stayed
RANKS = (FRAME, FRAME + len(ADJECTIVES) + len(NOUNS) + len(VERBS) + len(PLACES))


def sentences(folder: Path, number: int = 600) -> str:
    """The file, one sentence per line."""
    rng, path = random.Random(0), folder / "corpus.txt"
    lines = [
        rng.choice(FORMS).format(a=rng.choice(ADJECTIVES), n=rng.choice(NOUNS), v=rng.choice(VERBS), p=rng.choice(PLACES))
        for _ in range(number)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
