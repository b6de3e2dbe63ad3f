"""Calls of the Python interface that are written down as texts, read without `eval`: names, literals and calls of what is listed here."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from inputs.base import DATA, TINY
from inputs.row import Row

import advalign
from advalign import builder, config, data, interfaces, plugins
from advalign.adversaries.pgd import PGD
from advalign.attacks.embedding import Embedding
from advalign.attacks.template import Template
from advalign.attacks.words import Words
from advalign.errors import AdvalignError
from advalign.evaluation.reports import compare
from advalign.evaluation.suites.certificates import Masking, Smoothing
from advalign.judges import FunctionJudge, PrefixJudge
from advalign.objectives.sft import SFT
from advalign.rewards.function import Function
from advalign.sources.demos import Demos
from advalign.targets import AnsweringClassifier, AnsweringGenerator
from advalign.tasks.constraints import Constraints
from advalign.types import Budget, Conversation, Example, Message
from advalign.types.messages import conversation, message

LABELLED = [Example(prompt="the movie was good", label=1, id="a"), Example(prompt="the plot was bad", label=0, id="b")]
SUMS = [Example(prompt="one plus one =", answer="two", id="a"), Example(prompt="one plus two =", answer="three", id="b")]


def run(**sections: Any) -> Any:
    """A trainer of one learner; a section given takes the place of it."""
    sources, objectives = {"chat": Demos(data=DATA, limit=4, batch_size=2)}, {"imitate": SFT(source="chat")}
    return advalign.Trainer(**{"model": advalign.Learner(**TINY), "sources": sources, "objectives": objectives, **sections})


def suite(**fields: Any) -> Any:
    """A suite of one attack; a field given takes the place of it."""
    return advalign.Suite(**{"data": LABELLED, "attacks": {"bugs": Words(style="deepwordbug")}, "examples": 2, **fields})


def suite_run(model: Any, **fields: Any) -> Any:
    """That suite on a model."""
    return suite(**fields).run(model)


def _answers() -> dict[str, Callable[..., Any]]:
    """Functions that answer for a model, one right and the others as their names say."""
    functions = {
        "right": lambda texts: [[0.0, 1.0] for _ in texts],
        "nan_scores": lambda texts: [[math.nan, 1.0] for _ in texts],
        "one_row_less": lambda texts: [[0.0, 1.0]] * (len(texts) - 1),
        "no_list": lambda texts: 3,
        "none": lambda texts: None,
        "words": lambda texts: ["good" for _ in texts],
        "ragged": lambda texts: [[0.0] * (1 + i % 2) for i, _ in enumerate(texts)],
        "raises": lambda texts: 1 / 0,
        "one_class": lambda texts: [[1.0] for _ in texts],
        "one_less": lambda prompts: ["two"],
        "numbers": lambda prompts: [2 for _ in prompts],
        "nothing": lambda prompts: None,
        "raises_too": lambda prompts: [][0],
        "none_inside": lambda prompts: [None for _ in prompts],
    }
    for name, function in functions.items():
        function.__name__ = function.__qualname__ = name
    return functions


NAMES: dict[str, Any] = {
    **{name: getattr(advalign, name) for name in advalign.__all__},
    **{
        cls.__name__: cls
        for cls in (PGD, Embedding, Words, Masking, Smoothing, FunctionJudge, PrefixJudge, SFT, Function, Demos, Constraints)
    },
    **{cls.__name__: cls for cls in (AnsweringClassifier, AnsweringGenerator, Budget, Conversation, Example, Message)},
    **_answers(),
    "TemplateAttack": Template,
    "Objective": interfaces.Objective,
    **{function.__name__: function for function in (run, suite, suite_run, conversation, message)},
    **{module.__name__.rpartition(".")[2]: module for module in (builder, config, data, plugins, compare, torch)},
    "SUMS": SUMS,
    "ITERATOR": iter([]),
    "nan": math.nan,
    "inf": math.inf,
}
"""What a call may name."""


def value(node: ast.AST) -> Any:
    """The value of a written expression."""
    if isinstance(node, ast.Name):
        return NAMES[node.id]
    if isinstance(node, ast.Attribute):
        return operator.attrgetter(node.attr)(value(node.value))
    if isinstance(node, ast.Call):
        return value(node.func)(*map(value, node.args), **{str(k.arg): value(k.value) for k in node.keywords})
    if isinstance(node, ast.List | ast.Tuple):
        return (list if isinstance(node, ast.List) else tuple)(map(value, node.elts))
    if isinstance(node, ast.Dict):
        return {value(key): value(entry) for key, entry in zip(node.keys, node.values, strict=True) if key is not None}
    if isinstance(node, ast.UnaryOp):
        return -value(node.operand)
    return ast.literal_eval(node)


def row(written: str, says: tuple[str, ...]) -> Row:
    """The row of a call, which raises an error of the package."""
    node = ast.parse(written, mode="eval").body
    return Row(given=written, says=says, run=lambda: value(node), error=AdvalignError)
