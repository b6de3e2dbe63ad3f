"""`advalign eval`, `attack` and `compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from advalign.cli.console import say
from advalign.cli.networks import load_network, load_suite
from advalign.durable import writing
from advalign.errors import ConfigError, unknown
from advalign.run_folder import locked

if TYPE_CHECKING:
    from advalign.evaluation.reports.compare import Comparison
    from advalign.evaluation.suites.result import SuiteResult
    from advalign.evaluation.suites.suite import Suite
    from advalign.models import Network


def not_empty(value: str | None) -> str | None:
    """Refuses an empty text, which would stand for the current folder or for nothing."""
    if value is not None and not value.strip():
        raise typer.BadParameter("an empty text given")
    return value


Model = Annotated[str, typer.Argument(callback=not_empty, help="A folder written by train, a hub id or a path.")]
SuiteFile = Annotated[Path, typer.Option(help="A suite, for example configs/suites/classifier_small.yaml.")]
Data = Annotated[str | None, typer.Option(callback=not_empty, help="Other data than the suite's: a file, a hub id or task:<name>.")]
Column = Annotated[list[str] | None, typer.Option(help="A column of the data by field: label=sentiment; repeatable.")]
Output = Annotated[Path | None, typer.Option(help="The folder of results.jsonl and report.html.")]
Learner = Annotated[str | None, typer.Option(callback=not_empty, help="A learner of a trained run; the first by default.")]
Device = Annotated[
    str | None,
    typer.Option(callback=not_empty, help="The device of the model, for example cpu; by default an accelerator if there is one."),
]
Resume = Annotated[bool, typer.Option("--resume/--fresh", help="Continue what a killed run of the suite left in --output, or begin again.")]
Overwrite = Annotated[bool, typer.Option(help="Clear what --output holds of another suite, model or data.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that share the work (on a CPU).")]
Cache = Annotated[Path | None, typer.Option(help="A file that keeps a classifier's answers for later attacks and runs.")]
FailBelow = Annotated[float | None, typer.Option(help="Exit 1 if worst-case accuracy is below this, or means nothing.")]
Export = Annotated[str | None, typer.Option(callback=not_empty, help="Also write the results for another tool: garak or inspect.")]
SelfCheck = Annotated[bool, typer.Option(help="Also check that the gradient attack's number means something.")]
Transfer = Annotated[list[str] | None, typer.Option(help="With --self-check: another model whose edits are tried; repeatable.")]
Temperatures = Annotated[
    str | None, typer.Option(callback=not_empty, help="Also a policy's quality and diversity at these, for example 0.3,0.7,1.")
]
Kind = Annotated[str, typer.Option(callback=not_empty, help="An attack: see advalign list attacks.")]
Label = Annotated[str | None, typer.Option(callback=not_empty, help="The right class of the text, its index or its name (classifiers).")]
Answer = Annotated[str | None, typer.Option(callback=not_empty, help="The right response to the prompt (generators).")]
TargetText = Annotated[
    str | None, typer.Option(callback=not_empty, help="The response an attacker wants (generators); success: the answer begins with it.")
]
System = Annotated[
    str | None,
    typer.Option(callback=not_empty, help="The system's message before the text, which is then the user's turn of a conversation."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Dotted overrides of the suite: attacks.pgd.adversary.radius=0.2 budget.queries=50")
]
Options = Annotated[list[str] | None, typer.Argument(help="Fields of the attack: adversary.kind=pgd adversary.radius=0.1")]


def evaluate(
    model: Model,
    suite: SuiteFile,
    overrides: Overrides = None,
    *,
    data: Data = None,
    column: Column = None,
    output: Output = None,
    resume: Resume = True,
    overwrite: Overwrite = False,
    learner: Learner = None,
    device: Device = None,
    workers: Workers = 1,
    cache: Cache = None,
    fail_below: FailBelow = None,
    export: Export = None,
    self_check: SelfCheck = False,
    transfer: Transfer = None,
    temperatures: Temperatures = None,
) -> None:
    """Clean utility and every attack of a suite, judged by the harness; prints Markdown, writes report.html."""
    from advalign.evaluation.reports import quality_diversity
    from advalign.evaluation.suites.gate import check_bound

    _check_options(output, export, self_check, transfer)
    points = None if temperatures is None else quality_diversity.parse_temperatures(temperatures)
    check_bound(fail_below, "eval --fail-below")
    attacks, network = load_suite(suite, data, column or (), overrides or ()), load_network(model, learner, device)
    if points is not None:
        quality_diversity.check_policy(network)
    if cache is not None and network.head != "classifier":
        raise ConfigError("eval --cache: given, and it keeps the answers of classifiers, which this model is not; leave it out.")
    others = [load_network(path, learner, device, alone=True) for path in transfer or []]
    result = attacks.run(network, output, progress=True, workers=workers, cache=cache, resume=resume, overwrite=overwrite)
    if self_check:
        result = _checked(result, attacks, network, others, model)
    say(result.markdown())
    if output is not None:
        _write(result, output, export)
    if points is not None:
        _diversity(attacks, network, points, output)
    reasons = result.fails(fail_below) if fail_below is not None else []
    for reason in reasons:
        say(f"fail: {reason}")
    if reasons:
        raise typer.Exit(1)


def attack(
    model: Model,
    text: Annotated[str, typer.Argument(callback=not_empty, help="The text (or prompt) to attack.")],
    kind: Kind = "embedding",
    label: Label = None,
    answer: Answer = None,
    target: TargetText = None,
    system: System = None,
    options: Options = None,
    learner: Learner = None,
    device: Device = None,
) -> None:
    """Attack one text and print the report of the harness."""
    from advalign import builder, interfaces
    from advalign.evaluation.suites.suite import Suite
    from advalign.judges import PrefixJudge
    from advalign.overrides import within
    from advalign.types import Conversation, Example, Message

    _check_attack(answer, target, options or [])
    meta = ({} if target is None else {"response": target}) | ({} if label is None else {"label": label})
    prompt = text if system is None else Conversation((Message("system", system), Message("user", text)))
    suite = Suite(
        data=[Example(prompt=prompt, answer=answer, meta=meta)],
        attacks={kind: builder.build_plugin(interfaces.Attack, within({"kind": kind}, interfaces.Attack, options or []), "attack")},
        examples=1,
        judge=None if target is None else PrefixJudge(text=target),
    )
    network = load_network(model, learner, device)
    _check_answers(network.head, label, answer, target)
    say(suite.run(network, progress=True).markdown())


def compare(
    first: Annotated[str, typer.Argument(callback=not_empty, help="A folder that eval --output wrote; with --suite, a model.")],
    second: Annotated[str, typer.Argument(callback=not_empty, help="The other one; differences are second minus first.")],
    suite: Annotated[Path | None, typer.Option(help="Run this suite on both models first.")] = None,
    data: Data = None,
    column: Column = None,
    output: Annotated[Path | None, typer.Option(help="The folder of compare.html, and with --suite of the results of both.")] = None,
    device: Device = None,
) -> None:
    """Two models under the same attacks on the same examples: paired differences, intervals, McNemar's test."""
    from advalign.evaluation.reports import compare as reports

    if suite is not None:
        comparison = _compare_models((first, second), load_suite(suite, data, column or ()), output, device)
    elif data is not None or column is not None:
        option = "--data" if column is None else "--column"
        raise ConfigError(f"compare: {option} was given without --suite, which reads it; add --suite, or give two folders of results.")
    else:
        comparison = reports.folders(first, second)
    say(comparison.markdown())
    if output is not None:
        with writing(output, "compare --output"):
            say(f"written to {comparison.report().write(output / 'compare.html')}")


def _check_attack(answer: str | None, target: str | None, options: Sequence[str]) -> None:
    """Refuses what no model could be attacked with."""
    if answer is not None and target is not None:
        raise ConfigError("attack: --answer (the right response) and --target (the response an attacker wants) were both given; give one.")
    if kinds := [option for option in options if option.partition("=")[0].strip() == "kind"]:
        raise ConfigError(f"attack: '{kinds[0]}' given; the attack is named with --kind.")


def _check_answers(head: str, label: str | None, answer: str | None, target: str | None) -> None:
    """Refuses an attack without what tells a success, or with what belongs to another kind of model."""
    classifier = head == "classifier"
    if classifier and label is None:
        raise ConfigError("attack: no --label was given, and the model is a classifier; give the right class, its index or its name.")
    if not classifier and answer is None and target is None:
        raise ConfigError("attack: neither --answer (the right response) nor --target (what an attacker wants) was given; give one.")
    options = {"--answer": answer, "--target": target} if classifier else {"--label": label}
    for name, value in options.items():
        if value is not None:
            needed = "a classifier, which takes --label" if classifier else "a generator, which takes --answer or --target"
            raise ConfigError(f"attack: {name} was given, and the model is {needed}; leave it out.")


def _check_options(output: Path | None, export: str | None, self_check: bool, transfer: Sequence[str] | None) -> None:
    if transfer and not self_check:
        raise ConfigError("eval: --transfer was given without --self-check, which reads it; add --self-check.")
    if export is not None and output is None:
        raise ConfigError("eval: --export was given without --output, the folder it is written to; add --output.")
    if export is not None:
        from advalign.evaluation.reports.export import STYLES

        if export not in STYLES:
            raise unknown("eval --export", "style", export, STYLES)


def _checked(result: SuiteResult, suite: Suite, network: Network, others: Sequence[Network], model: str) -> SuiteResult:
    """The result, with what the self-check says of it; a run's log of training is read from its folder."""
    from advalign.evaluation.selfcheck import selfcheck

    folder = next((path for path in (Path(model), Path(model).parent) if (path / "log.jsonl").is_file()), None)
    return replace(result, checks=selfcheck.of_suite(suite, network, transfer=others, folder=folder))


def _write(result: SuiteResult, output: Path, export: str | None) -> None:
    with locked(output, "eval --output"), writing(output, "eval --output"):
        result.save(output)
        say(f"written to {output / 'report.html'}")
        if export is not None:
            from advalign.evaluation.reports.export import write

            say(f"written to {write(result, export, output / f'{export}.jsonl')}")


def _diversity(suite: Suite, network: Network, temperatures: Sequence[float], output: Path | None) -> None:
    from advalign.evaluation.reports import quality_diversity

    curve = quality_diversity.suite_report(suite, network, temperatures)
    say(curve.markdown())
    if output is not None:
        with writing(output, "eval --output"):
            say(f"written to {curve.write(output / 'quality_diversity.html')}")


def _compare_models(models: tuple[str, str], suite: Suite, output: Path | None, device: str | None) -> Comparison:
    """The suite on both models; they are named by their folders, by their whole paths if those agree."""
    from advalign.evaluation.reports import compare as reports

    results = []
    for name, model in zip(("first", "second"), models, strict=True):
        folder = None if output is None else output / name
        results.append(suite.run(load_network(model, None, device), output_dir=folder, progress=True).results)
    names = (Path(models[0]).name, Path(models[1]).name)
    return reports.results(results[0], results[1], names if names[0] != names[1] else models)
