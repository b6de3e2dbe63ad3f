"""The network and the suite that a command names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from advalign.errors import ConfigError, excerpt, unknown

if TYPE_CHECKING:
    from advalign.evaluation.suites.suite import Suite
    from advalign.models import Network


def load_suite(path: Path, data: str | None, columns: Sequence[str] = (), overrides: Sequence[str] = ()) -> Suite:
    """A suite with dotted overrides, and with other data if `data` is given, whose `columns` are `field=column`."""
    from advalign.data import with_columns
    from advalign.evaluation.suites.suite import Suite

    suite = Suite.load(path, overrides)
    suite = suite if data is None else replace(suite, data=data)
    if not columns:
        return suite
    pairs = [pair.partition("=") for pair in columns]
    wrong = next((pair for pair, (field, sign, column) in zip(columns, pairs, strict=True) if not (field and sign and column)), None)
    if wrong is not None:
        raise ConfigError(f"--column: '{wrong}' given; write it as field=column, for example label=sentiment.")
    if not isinstance(suite.data, str | Mapping):
        raise ConfigError("--column: the suite's data is a list of examples, whose fields have their names; give --data.")
    return replace(suite, data=with_columns(suite.data, {field: column for field, _, column in pairs}))


def load_network(model: str, learner: str | None, device: str | None, *, alone: bool = False) -> Network:
    """A network from a folder of one model, or of a run (one folder per learner); on `device`, else on an accelerator if there is one.

    `alone`: `learner` is meant for runs, and a model without one passes."""
    import torch
    from accelerate import Accelerator

    try:
        place = torch.zeros((), device=device or Accelerator().device).device
    except (RuntimeError, AssertionError) as error:
        reason = excerpt(str(error).splitlines()[0].rstrip("."))
        raise ConfigError(f"--device: '{device}' cannot be used here ({reason}); give cpu, or leave it out.") from error
    if place.type == "meta":
        raise ConfigError("--device: 'meta' holds no numbers; give cpu, or leave it out.")
    network: Network = _load(model, learner, alone).to(place)
    return network


def _load(model: str, learner: str | None, alone: bool) -> Network:
    from transformers.utils import logging

    from advalign.models import folders, load

    logging.disable_progress_bar()
    folder = Path(model)
    if folder.is_dir() and not folders.holds_model(folder):
        learners = sorted(path.name for path in folder.iterdir() if folders.holds_model(path))
        if learner is not None and learner not in learners:
            raise unknown(model, "learner", learner, learners)
        if learners:
            return load(str(folder / (learner or ("policy" if "policy" in learners else learners[0]))))
    if learner is not None and not alone:
        raise ConfigError(f"--learner: '{learner}' given, but '{model}' is one model, not a run of several learners; leave it out.")
    return load(model, head=None)
