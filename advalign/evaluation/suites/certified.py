"""Certified rates: on how many examples no change within a size can alter the answer of a smoothed classifier.

suite:  certified: {smoothing: {sigma: 0.5, n: 1000}, ranmask: {rate: 0.7, n: 5000}}
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from advalign import builder
from advalign.durable import writing
from advalign.errors import ConfigError
from advalign.evaluation.reports.results_file import mapping, read_lines
from advalign.evaluation.suites.certificates import Certificate, CertificateMethod, Masking, Smoothing
from advalign.evaluation.suites.log import AGAIN, PATH
from advalign.functional.intervals import wilson
from advalign.models import Network
from advalign.targets import BlackBoxModel
from advalign.targets.ensemble import Ensemble
from advalign.types import Example

NAMES = {field.name for field in fields(Certificate)}
KINDS: Mapping[str, type[CertificateMethod]] = {"smoothing": Smoothing, "ranmask": Masking}


def build(config: Any, path: str = "suite.certified") -> dict[str, CertificateMethod]:
    """{name: method} from `{name: {kind: smoothing, sigma: ...}}`; a name that is a kind needs no kind."""
    entries = builder.expect(config, Mapping, path).items()
    return {str(n): builder.build_choice(KINDS, "kind of certificate", v, f"{path}.{n}", default=str(n)) for n, v in entries}


def run(
    methods: Mapping[str, CertificateMethod],
    model: Network | BlackBoxModel,
    examples: Sequence[Example],
    *,
    seed: int = 0,
    folder: str | Path | None = None,
) -> dict[str, list[Certificate]]:
    """{name: certificate of every example}. With `folder`: one line of certified.jsonl each, written at once; a killed run resumes
    after the last whole line. An ensemble is replaced by the classifier inside it."""
    if not methods:
        return {}
    if model.head != "classifier" or isinstance(model, BlackBoxModel):
        raise ConfigError(f"suite.certified: a network with head '{model.head}' given; only the vote of a classifier is certified.")
    network = model.network if isinstance(model, Ensemble) else model
    path = None if folder is None else Path(folder) / "certified.jsonl"
    work = [(name, example) for name in methods for example in examples]
    done = [] if path is None else _done(path, [(name, example.id) for name, example in work])
    for name, example in work[len(done) :]:
        done.append(methods[name].certify(network, name, example, seed))
        if path is not None:
            with writing(path.parent, PATH), path.open("a", encoding="utf-8") as file:
                file.write(_line(done[-1]))
    return {name: [c for c in done if c.certificate == name] for name in methods}


def _done(path: Path, asked: Sequence[tuple[str, str]]) -> list[Certificate]:
    """The certificates of whole lines, which the file then ends with. Raises ConfigError for lines that are not as they were written."""
    certificates = []
    for number, (line, key) in enumerate(zip(read_lines(path), asked, strict=False), 1):
        values = mapping(line, f"{path}, line {number}")
        if values.keys() != NAMES or (values["certificate"], values["example"]) != key:
            raise ConfigError(f"{path}, line {number}: not the certificate '{key[0]}' of example '{key[1]}', as it was written; {AGAIN}.")
        certificates.append(Certificate(**values))
    with writing(path.parent, PATH):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(c) for c in certificates), encoding="utf-8")
    return certificates


def rates(name: str, method: CertificateMethod, certificates: Sequence[Certificate]) -> list[dict[str, Any]]:
    """One row per size: the fraction that is right and certified there, with a Wilson interval over the examples."""
    total = max(len(certificates), 1)
    rows = []
    for size in method.sizes:
        number = sum(c.correct and c.size >= size for c in certificates)
        low, high = wilson(number, len(certificates))
        row = {"certificate": name, "threat": method.threat, "within": size, "certified accuracy": number / total, "low": low, "high": high}
        row |= {"abstained": sum(c.predicted is None for c in certificates) / total, "n": len(certificates)}
        rows.append(row | {"copies": sum(c.copies for c in certificates) / total})
    return rows


def _line(certificate: Certificate) -> str:
    return json.dumps(asdict(certificate)) + "\n"


__all__ = ["Certificate", "CertificateMethod", "Masking", "Smoothing", "build", "rates", "run"]
