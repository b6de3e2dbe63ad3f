"""`advalign train`, `show` and `list`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advalign import plugins
from advalign.cli.console import say, say_numbers
from advalign.errors import AdvalignError, NotImported

if TYPE_CHECKING:
    from advalign.interfaces import Source
    from advalign.training.trainer import Trainer

Config = Annotated[Path, typer.Argument(help="A YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides, for example objectives.robust.coef=0.3")]


def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint in output_dir.")] = False,
    resume_from: Annotated[Path | None, typer.Option(help="Continue from this checkpoint.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Give up the run that output_dir holds.")] = False,
    smoke: Annotated[bool, typer.Option(help="Two steps per stage, two rows per draw: does it run?")] = False,
) -> None:
    """Run a configuration. Prints the loss as a formula first."""
    from advalign import config as configuration

    described = configuration.read(config, overrides or [])
    trainer = configuration.trainer(described, smoke=smoke)
    main = int(os.environ.get("RANK", "0")) == 0
    tell = say if main else _silent  # of several processes the first one prints
    tell(trainer.formula())
    start: bool | Path = resume if resume_from is None else resume_from
    overwrite = overwrite or (smoke and not start)
    trainer.prepare(resume=start, overwrite=overwrite)
    trainer.start()
    for note in trainer.notes():
        tell(f"note: {note}")
    history = trainer.train(resume=start, overwrite=overwrite)
    if main and history:
        numbers = {name: value for name, value in history[-1].items() if isinstance(value, int | float)}
        say_numbers(numbers, f"step {history[-1]['step']}")
        say(trainer.meter.summary())
    if trainer.args.output_dir:
        tell(f"saved to {trainer.args.output_dir}")


def show(
    config: Config,
    overrides: Overrides = None,
    allow_imports: Annotated[
        bool, typer.Option("--allow-imports", help="Import the modules that the configuration names, which runs them.")
    ] = False,
) -> None:
    """Print the loss of a configuration as a formula, its forward passes and the cost of a step, before a run. Loads no weights."""
    from advalign import config as configuration
    from advalign import imports

    with imports.held_back(not allow_imports) as names:
        described = configuration.read(config, overrides or [])
        try:
            lines = _shown(configuration.trainer(described))
        except NotImported:  # `names` says what; the rest is shown as it is written
            lines = configuration.outline(described)
        for line in lines:
            say(line)
    if names:
        listed = ", ".join(dict.fromkeys(names))
        say(f"not imported: {listed}; importing runs these modules, and --allow-imports does it, for all that a run checks and costs.")


def _shown(trainer: Trainer) -> list[str]:
    """The formula, notes, sources and costs of a run."""
    from advalign.training.forecast import forecast

    lines = [trainer.formula(), *(f"note: {note}" for note in trainer.notes())]
    for name, source in trainer.config["sources"].items():
        lines.append(f"source {name}: {', '.join([plugins.kind_of(type(source)), *_sizes(source)])}")
    try:
        return lines + [line for cost in forecast(trainer) for line in cost.lines()]
    except AdvalignError as error:  # for example a model of the hub, without a network
        return [*lines, f"the cost of a step is unknown: {error}"]


def list_(group: Annotated[str | None, typer.Argument(help=f"A plugin group: {', '.join(plugins.GROUPS)}.")] = None) -> None:
    """One line per plugin of a group: its kind and its formula. Without a group: the groups."""
    lines = plugins.summaries(group) if group is not None else {name: plugins.group_summary(name) for name in plugins.GROUPS}
    width = max(map(len, lines))
    for name, summary in lines.items():
        say(f"{name:<{width}}  {summary}")


def _sizes(source: Source) -> list[str]:
    """The fields of a source that say how many rows it draws, as text."""
    fields = vars(source)
    return [f"{name} {fields[name]}" for name in ("batch_size", "group_size", "limit") if fields.get(name)]


def _silent(text: str) -> None:
    """Prints nothing."""
