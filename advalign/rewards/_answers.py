"""Reference answers that rewards compare with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from advalign.errors import ConfigError
from advalign.types import Example


def check_answers(examples: Sequence[Example], path: str, *, verifiers: bool = True) -> None:
    """Refuses examples of which none has an answer (or, with `verifiers`, a verifier of its own), and counts those that have none, since
    the reward abstains on them."""
    without = [e for e in examples if e.answer is None and not (verifiers and e.verify is not None)]
    if len(without) == len(examples):
        raise ConfigError(
            f"{path}: none of the {len(examples)} examples has an answer to compare with (first: {without[0].described}); name its column "
            "with columns: {answer: ...}."
        )
    if without:
        warnings.warn(
            f"{path}: {len(without)} of {len(examples)} examples have no answer to compare with (first: {without[0].described}); the "
            "reward abstains on them.",
            stacklevel=4,
        )
