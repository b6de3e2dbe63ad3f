"""The table of architectures: what every check says of every family.

PYTHONPATH=.:tests python -m architectures.table [HEAD/FAMILY ...]    runs all of it or some families; writes table.json, docs/models.md

A family of which something is wrong keeps the entry that it has, and the command fails.
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
    return {"in 4.57": not family.since5, "tolerance": family.tolerance, "why": why}


def main(names: list[str]) -> int:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    every = [f"{head}/{kind}" for head, families in FAMILIES.items() for kind in families]
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {head: {} for head in FAMILIES}
    num_wrong = 0
    for name in names or every:
        head, _, kind = name.partition("/")
        checks = outcomes(head, kind)
        remarks = {check: text for check, text in checks.items() if text != WORKS}
        print(name, *(f"\n    {check}: {text}" for check, text in remarks.items()), flush=True)
        wrong = [text for text in checks.values() if text.startswith(WRONG)]
        num_wrong += len(wrong)
        if not wrong:
            results[head][kind] = {"class": model_class(head, kind)} | described(head, kind) | {"checks": checks}
            write(results)
    print(f"{num_wrong} wrong")
    return int(num_wrong > 0)


def write(results: dict[str, Any]) -> None:
    """The results in the order of the families, and the page that shows them."""
    ordered = {head: {kind: results[head][kind] for kind in families if kind in results[head]} for head, families in FAMILIES.items()}
    RESULTS.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    if all(ordered.values()):
        path = ROOT / "docs" / "models.md"
        path.write_text(page.rewritten(path.read_text(encoding="utf-8"), ordered), encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
