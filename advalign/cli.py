"""`advalign train | eval | attack | compare | show | list`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from advalign import config as configuration
from advalign import plugins
from advalign.errors import AdvalignError, ConfigError, unknown
from advalign.training.forecast import forecast

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Adversarial and GAN-style alignment, beside SFT and RL.")
out = Console()

Config = Annotated[Path, typer.Argument(help="A YAML file.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides, for example objectives.robust.coef=0.3")]


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option(help="Continue from the newest checkpoint in output_dir.")] = False,
    smoke: Annotated[bool, typer.Option(help="Two steps per stage, two rows per draw: does it run?")] = False,
) -> None:
    """Run a configuration. Prints the loss as a formula first."""
    described = configuration.read(config, overrides or [])
    trainer = configuration.trainer(_smoke(described) if smoke else described)
    # Of several processes the first one speaks.
    say = _say if int(os.environ.get("RANK", "0")) == 0 else _quiet
    say(trainer.formula())
    trainer.start()
    for note in trainer.notes():
        say(f"note: {note}")
    history = trainer.train(resume=resume)
    if history and trainer.ranks.main:
        numbers = {k: v for k, v in history[-1].items() if isinstance(v, int | float)}
        out.print(_numbers(numbers, f"step {history[-1]['step']}"))
        _say(trainer.meter.summary())
    if trainer.args.output_dir:
        say(f"saved to {trainer.args.output_dir}")


@app.command()
def show(config: Config, overrides: Overrides = None) -> None:
    """Print the loss of a configuration as a formula, its forwards, and what a step costs, before a run. Loads no weights."""
    trainer = configuration.trainer(configuration.read(config, overrides or []))
    _say(trainer.formula())
    for note in trainer.notes():
        _say(f"note: {note}")
    for name, source in trainer.config["sources"].items():
        rows = [f"{key} {getattr(source, key)}" for key in ("batch_size", "group_size", "limit") if getattr(source, key, None)]
        _say(f"source {name}: {', '.join([plugins.kind_of(type(source)), *rows])}")
    try:
        lines = [line for made in forecast(trainer) for line in made.lines()]
    except AdvalignError as error:  # a hub that is out of reach, say: the formula stands without it
        lines = [f"what a step costs is not known here: {error}"]
    for line in lines:
        _say(line)


@app.command(name="list")
def list_(room: Annotated[str, typer.Argument(help=", ".join(plugins.GROUPS))]) -> None:
    """One line per plugin of a room: its kind and its formula."""
    known = plugins.kinds(room)
    for kind in known:
        _say(f"{kind:<{max(map(len, known))}}  {plugins.summary(plugins.resolve(room, kind))}")


@app.command(name="eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="A folder written by train, a hub id or a path.")],
    suite: Annotated[Path, typer.Option(help="A suite, for example configs/suites/classifier_small.yaml.")],
    data: Annotated[str | None, typer.Option(help="Other data than the suite's: a file, a hub id or task:<name>.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where results.jsonl and report.html go.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--fresh", help="Go on with what a killed run left in --output, or begin again.")] = True,
    learner: Annotated[str | None, typer.Option(help="Which learner of a trained run; the first by default.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the model runs, for example cpu; an accelerator where there is one.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the work (on a CPU).")] = 1,
    cache: Annotated[Path | None, typer.Option(help="A file that keeps a classifier's answers for later attacks and runs.")] = None,
    fail_below: Annotated[float | None, typer.Option(help="Exit 1 if accuracy in the worst case is below, or means nothing.")] = None,
    export: Annotated[str | None, typer.Option(help="Also write the results for another tool: garak or inspect.")] = None,
    self_check: Annotated[bool, typer.Option(help="Also check that the gradient attack's number means something.")] = False,
    transfer: Annotated[list[str] | None, typer.Option(help="With --self-check: another model whose edits are tried; repeatable.")] = None,
    temperatures: Annotated[str | None, typer.Option(help="Also a policy's quality and diversity at these, for example 0.3,0.7,1.")] = None,
) -> None:
    """Clean utility and every attack of a suite, judged by the harness; prints Markdown, writes report.html."""
    if transfer and not self_check:
        raise ConfigError("eval: --transfer was given without --self-check, which is what reads it; add --self-check.")
    if export is not None and output is None:
        raise ConfigError("eval: --export was given without --output, the folder it is written to; add --output.")
    if export is not None:
        from advalign.evaluation.reports.export import STYLES

        if export not in STYLES:
            raise unknown("eval --export", "style", export, STYLES)
    loaded, network = _suite(suite, data), _network(model, learner, device)
    others = [_network(path, learner, device) for path in transfer or []]
    if not resume and output is not None:
        for name in ("suite.json", "results.jsonl", "timings.jsonl", "certified.jsonl"):
            (output / name).unlink(missing_ok=True)
    result = loaded.run(network, output_dir=output, progress=True, workers=workers, cache=cache)
    if self_check:
        from advalign.evaluation.selfcheck import selfcheck

        folder = next((f for f in (Path(model), Path(model).parent) if (f / "log.jsonl").is_file()), None)
        result = replace(result, checks=selfcheck.of_suite(loaded, network, transfer=others, folder=folder))
        if output is not None:
            result.save(output)
    _say(result.markdown())
    if output is not None:
        result.html(output / "report.html")
        _say(f"written to {output / 'report.html'}")
        if export is not None:
            from advalign.evaluation.reports.export import write

            _say(f"written to {write(result, export, output / f'{export}.jsonl')}")
    if temperatures is not None:
        _diversity(loaded, network, temperatures, output)
    reasons = result.fails(fail_below) if fail_below is not None else []
    for reason in reasons:
        _say(f"fail: {reason}")
    if reasons:
        raise typer.Exit(1)


@app.command()
def attack(
    model: Annotated[str, typer.Argument(help="A folder written by train, a hub id or a path.")],
    text: Annotated[str, typer.Argument(help="The text (or prompt) to attack.")],
    kind: Annotated[str, typer.Option(help="An attack: see advalign list attacks.")] = "embedding",
    label: Annotated[int | None, typer.Option(help="The right class of the text (classifiers).")] = None,
    answer: Annotated[str | None, typer.Option(help="The right response to the prompt (generators).")] = None,
    target: Annotated[
        str | None, typer.Option(help="What the attacker wants to hear (generators): success is an answer that begins so.")
    ] = None,
    options: Annotated[list[str] | None, typer.Argument(help="Fields of the attack: adversary.kind=pgd adversary.radius=0.1")] = None,
    learner: Annotated[str | None, typer.Option(help="Which learner of a trained run; the first by default.")] = None,
    device: Annotated[str | None, typer.Option(help="Where the model runs, for example cpu; an accelerator where there is one.")] = None,
) -> None:
    """Attack one text and print what the harness found."""
    from advalign.evaluation.suites.suite import Suite

    if answer is not None and target is not None:
        raise ConfigError("attack: --answer (the right response) and --target (the response an attacker wants) were both given; give one.")
    row: dict[str, Any] = {"prompt": text, "label": label, "answer": answer}
    if target is not None:
        row["meta"] = {"response": target}
    chosen = {"kind": kind} | configuration.dotted(options or [])
    described: dict[str, Any] = {"data": [{k: v for k, v in row.items() if v is not None}], "attacks": {kind: chosen}, "examples": 1}
    if target is not None:
        described["judge"] = {"kind": "prefix", "text": target}
    _say(Suite.load(described).run(_network(model, learner, device), progress=True).markdown())


@app.command()
def compare(
    first: Annotated[str, typer.Argument(help="A folder that eval --output wrote; with --suite, a model.")],
    second: Annotated[str, typer.Argument(help="The other one; differences are second minus first.")],
    suite: Annotated[Path | None, typer.Option(help="Run this suite on both models first.")] = None,
    data: Annotated[str | None, typer.Option(help="Other data than the suite's.")] = None,
    output: Annotated[Path | None, typer.Option(help="Where compare.html goes, and with --suite the results of both.")] = None,
    device: Annotated[str | None, typer.Option(help="With --suite: where the models run; an accelerator where there is one.")] = None,
) -> None:
    """Two models under the same attacks on the same examples: paired differences, intervals, McNemar's test."""
    from advalign.evaluation.reports import compare as comparing

    if suite is None:
        if data is not None:
            raise ConfigError(
                "compare: --data was given without --suite, which is what reads it; add --suite, or give two folders of results."
            )
        found = comparing.folders(first, second)
    else:
        loaded = _suite(suite, data)
        runs = []
        for name, model in (("first", first), ("second", second)):
            folder = None if output is None else output / name
            runs.append(loaded.run(_network(model, None, device), output_dir=folder, progress=True).results)
        found = comparing.results(
            runs[0], runs[1], (Path(first).name, Path(second).name) if Path(first).name != Path(second).name else (first, second)
        )
    _say(found.markdown())
    if output is not None:
        _say(f"written to {found.report().write(output / 'compare.html')}")


def _suite(path: Path, data: str | None) -> Any:
    from advalign.evaluation.suites.suite import Suite

    loaded = Suite.load(path)
    return loaded if data is None else replace(loaded, data=data)


def _diversity(suite: Any, network: Any, temperatures: str, output: Path | None) -> None:
    from advalign.metrics import diversity

    curve = diversity.of_suite(suite, network, diversity.numbers(temperatures))
    _say(curve.markdown())
    if output is not None:
        _say(f"written to {curve.write(output / 'quality_diversity.html')}")


def _network(model: str, learner: str | None, device: str | None = None) -> Any:
    """A network from a folder of one model, or of a run, which holds one folder per learner; on `device`, else on an accelerator
    where there is one."""
    import torch
    from accelerate import Accelerator

    try:
        place = torch.zeros((), device=device or Accelerator().device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ConfigError(f"--device: '{device}' cannot be used here ({reason}); give cpu, or leave it out.") from error
    return _loaded(model, learner).to(place)


def _loaded(model: str, learner: str | None) -> Any:
    from advalign.models import load

    folder = Path(model)
    if folder.is_dir() and not (folder / "config.json").exists():
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        if learner is not None and learner not in inside:
            raise unknown(model, "learner", learner, inside)
        if inside:
            chosen = learner or ("policy" if "policy" in inside else inside[0])
            return load(str(folder / chosen))
    return load(model, head=None)


def _smoke(described: dict[str, Any]) -> dict[str, Any]:
    """The same run, as small as it can be: every plugin is started, every forward runs."""
    small = json.loads(json.dumps(described))
    for stage in small.get("stages", []):
        stage["steps"] = 2
    small["args"] = (small.get("args") or {}) | {"max_steps": 2}
    if small["args"].get("output_dir"):
        small["args"]["output_dir"] += "-smoke"  # a fresh run clears its folder: never the one of the real run
    for source in small.get("sources", {}).values():
        source["batch_size"] = min(source.get("batch_size", 2), 2)
        if "group_size" in source or source.get("kind") == "prompts":
            source["group_size"] = 2
        if source.get("kind") == "rejection":  # two steps of training reach no threshold
            source |= {"collect": 2, "threshold": None}
    for evaluation in small.get("evaluations", {}).values():
        evaluation["number"] = 4 if evaluation.get("probe") else 2
        if evaluation.get("probe"):
            evaluation["probe"]["steps"] = 2
    return small


def _say(text: str) -> None:
    """As it is: no wrapping to the width of a terminal, no markup."""
    out.print(text, soft_wrap=True, highlight=False, markup=False)


def _quiet(text: str) -> None:
    pass


def _numbers(numbers: dict[str, float], title: str) -> Table:
    table = Table(title=title, box=None)
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name in sorted(numbers):
        table.add_row(name, f"{numbers[name]:.4g}")
    return table


def main() -> None:
    """The console script: a mistake of the user is one sentence, not a traceback."""
    try:
        app(standalone_mode=True)
    except AdvalignError as error:
        Console(stderr=True).print(f"{type(error).__name__}: {error}", style="red", soft_wrap=True, markup=False, highlight=False)
        sys.exit(2)
