"""The table of architectures: what every check says of every family.

PYTHONPATH=.:tests python -m architectures.table                    runs all of it and writes table.json and docs/models.md
PYTHONPATH=.:tests python -m architectures.table HEAD/FAMILY ...    prints what the checks say of some
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from architectures import causal_checks, classifier_checks, page
from architectures.build import Subject
from architectures.causal import CAUSAL
from architectures.classifiers import CLASSIFIERS

from advalign.errors import AdvalignError

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = {"policy": CAUSAL, "classifier": CLASSIFIERS}
CHECKS = {"policy": causal_checks.CHECKS, "classifier": classifier_checks.CHECKS}
RESULTS = Path(__file__).with_name("table.json")
LOADING, WORKS, REFUSED, WRONG = page.LOADING, page.WORKS, page.REFUSED, "WRONG: "


def outcomes(head: str, kind: str) -> dict[str, str]:
    """{check: works, works with a remark, or refused and why}; anything else that a check says begins with WRONG."""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        subject = Subject(kind, FAMILIES[head][kind], head, folder / "model")
        loading = _say(lambda *_: subject.net and None, subject, folder)
        if loading != WORKS:
            return {LOADING: loading}
        return {name: _say(check, subject, folder) for name, check in CHECKS[head].items()}


def _say(check: Any, subject: Subject, folder: Path) -> str:
    torch.manual_seed(0)
    try:
        remark = check(subject, folder)
    except AdvalignError as error:
        return REFUSED + str(error).replace(str(folder), "FOLDER")
    except Exception as error:  # a table says what goes wrong, and goes on
        return f"{WRONG}{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return f"{WORKS}: {remark}" if isinstance(remark, str) else WORKS


def model_class(head: str, kind: str) -> str:
    """The class that transformers has for it."""
    auto = transformers.AutoModelForCausalLM if head == "policy" else transformers.AutoModelForSequenceClassification
    classes = auto._model_mapping[transformers.AutoConfig.for_model(kind).__class__]
    return str((classes[0] if isinstance(classes, tuple) else classes).__name__)


def described(head: str, kind: str) -> dict[str, Any]:
    """What the table says of a family beside its checks."""
    family = FAMILIES[head][kind]
    why = "float32" if family.dtype == "float32" else "float32 inside" if family.float32 else ""
    return {"class": model_class(head, kind), "in 4.57": not family.since5, "tolerance": family.tolerance, "why": why}


def main(names: list[str]) -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    every = [f"{head}/{kind}" for head, families in FAMILIES.items() for kind in families]
    results: dict[str, Any] = {head: {} for head in FAMILIES}
    num_wrong = 0
    for name in names or every:
        head, _, kind = name.partition("/")
        checks = outcomes(head, kind)
        results[head][kind] = described(head, kind) | {"checks": checks}
        num_wrong += sum(text.startswith(WRONG) for text in checks.values())
        remarks = {check: text for check, text in checks.items() if text != WORKS}
        print(name, *(f"\n    {check}: {text}" for check, text in remarks.items()), flush=True)
    if not names and not num_wrong:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        (ROOT / "docs" / "models.md").write_text(page.rewritten((ROOT / "docs" / "models.md").read_text(), results), encoding="utf-8")
    print(f"{num_wrong} wrong")
    return int(num_wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
