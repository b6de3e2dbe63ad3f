"""Any function that classifies texts, under attack: no model of this library, no download. With a model, give its folder to Suite.run."""

import argparse

from advalign.evaluation import Suite
from advalign.targets import AnsweringClassifier

POSITIVE, NEGATIVE = {"good", "great", "lovely", "fun"}, {"bad", "dull", "awful", "boring"}
ROWS = [
    ("a good film with a lovely end", 1),
    ("great fun from start to end", 1),
    ("a bad and boring film", 0),
    ("dull , awful and long", 0),
]


def sentiment(texts: list[str]) -> list[list[float]]:
    """Scores of negative and positive, one row per text."""
    return [[float(sum(word in words for word in text.lower().split())) for words in (NEGATIVE, POSITIVE)] for text in texts]


arguments = argparse.ArgumentParser(description=__doc__)
arguments.add_argument("--output", help="where results.jsonl and report.html go")
arguments.add_argument("--smoke", action="store_true")
args = arguments.parse_args()

suite = Suite.load(
    {
        "data": [{"prompt": text, "label": label} for text, label in ROWS],
        "attacks": {
            "typos": {"kind": "words", "style": "deepwordbug", "max_changed": 0.4},
            "pairs": {"kind": "exhaustive", "edits": 2, "sources": ["characters"], "candidates": 4, "max_changed": 0.4},
        },
    }
)
result = suite.run(AnsweringClassifier(sentiment), args.output)
print(result.markdown())
