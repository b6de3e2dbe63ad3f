"""What every source declares, and that rows are what their source declares."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import yaml
from helpers.runs import game
from helpers.sources import group

from advalign import config, names, plugins
from advalign.errors import ConfigError
from advalign.interfaces import Source, SourceRuntime, check_rows
from advalign.models.padding import pad
from advalign.objectives.sft import SFT
from advalign.types import (
    DemoRows,
    Example,
    LabelRows,
    PairRows,
    Rollout,
    RolloutGroup,
    RolloutRows,
    Rows,
    from_json,
    to_json,
    without_verifier,
)

SAMPLED = {"adversarial_prompts", "defender", "game", "prompts", "rejection", "replay", "self_vs_real", "trajectories"}
ROLLOUTS = {"adversarial_prompts", "defender", "game", "prompts", "replay", "trajectories"}


def overrides(cls, name):
    return getattr(cls, name) is not getattr(Source, name)


@pytest.mark.parametrize("cls", plugins.all("sources"), ids=plugins.kind_of)
def test_a_source_declares_what_the_library_reads(cls):
    """A learner samples for it: `samples_with`, fields that name who writes and a draw before updates. Its rows are rollouts: an advantage.
    It names its draw's size, but for the defender, whose draw has the size of the game's."""
    kind = plugins.kind_of(cls)
    assert issubclass(cls, Source)
    assert issubclass(cls.row_type, Rows)
    assert overrides(cls, "samples_with") == (kind in SAMPLED)
    writes = any(mark == names.SAMPLER for hint in names.declared(cls).values() for mark in names.marks(hint))
    assert writes == (kind in SAMPLED | {"persistent_suffixes", "contrast"})  # contrast: `minus_logprob`
    assert cls.draws_before_updates == (kind in SAMPLED | {"persistent_suffixes"})
    assert overrides(cls, "advantage_estimator") == (cls.row_type is RolloutRows) == (kind in ROLLOUTS)
    assert overrides(cls, "draw_size") == (kind != "defender")
    assert overrides(cls, "request") == (kind in {"adversarial_prompts", "game", "prompts", "rejection"})


def tokens(number):
    return pad([[1, 2]] * number, [1] * number, 0)


def rollouts(number):
    def rollout():
        return Rollout(response_ids=[2], sampler_logprobs=[0.0], text="a", finished=True)

    group = RolloutGroup(example=Example(prompt="p"), prompt_ids=[1], rollouts=[rollout() for _ in range(number)])
    return [group]


def rollout_rows(number):
    zeros = torch.zeros(number, 2)
    return RolloutRows(
        tokens=tokens(number),
        rewards=torch.zeros(number, 1),
        advantages=zeros,
        sampler_logprobs=zeros,
        finished=torch.ones(number, dtype=torch.bool),
    )


REFUSED = {
    "another container": (
        DemoRows(tokens=tokens(2)), [1, 2], LabelRows,
        "its runtime built DemoRows, and the source declares row_type LabelRows.",
    ),
    "a short column": (
        LabelRows(tokens=tokens(2), labels=torch.zeros(3, dtype=torch.long)), [1, 2], LabelRows,
        "column 'labels' has 3 entries for 2 rows; every column has one per row.",
    ),
    "half a pair": (PairRows(tokens=tokens(3)), [1, 2], PairRows, "3 rows built; pairs have two rows each, chosen then rejected."),
    "a lost response": (rollout_rows(2), rollouts(3), RolloutRows, "2 rows built from 3 responses; rollouts have one row per response."),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_rows_that_are_not_what_their_source_declares_are_refused_in_a_sentence(case):
    rows, items, row_type, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"^sources\.mine: {sentence}$"):
        check_rows(rows, items, row_type, "sources.mine")


def test_rows_that_fit_pass():
    check_rows(DemoRows(tokens=tokens(2)), ["a", "b"], DemoRows, "sources.mine")
    check_rows(PairRows(tokens=tokens(4), margin=torch.zeros(4)), ["a", "b"], PairRows, "sources.mine")
    check_rows(rollout_rows(3), rollouts(3), RolloutRows, "sources.mine")


@dataclass(frozen=True, kw_only=True)
class Mislabelled(Source):
    """Declares demonstrations and builds pairs."""

    row_type: ClassVar[type[Rows]] = DemoRows

    def start(self, context, name):
        class Runtime(SourceRuntime):
            def draw(self, step, repeat):
                return ["red"]

            def rows(self, items, encoder):
                return PairRows(tokens=encoder.demos(["length 3 :"] * 2, ["red red red"] * 2))

        return Runtime()


def test_a_run_refuses_a_runtime_that_builds_other_rows():
    trainer = game(sources={"mine": Mislabelled()}, objectives={"imitate": SFT(source="mine")}, adversaries={})
    with pytest.raises(ConfigError, match=r"^sources\.mine: its runtime built PairRows, and the source declares row_type DemoRows\.$"):
        trainer.train(progress=False)


def test_a_group_is_the_same_after_json():
    original = group("a :", version=4, offpolicy=True)
    original.baseline = 1 / 3
    again = from_json(json.loads(json.dumps(to_json(original))))
    assert again == without_verifier(original)
    assert again != original  # the verifier and the loose columns are gone, and nothing else


def test_every_source_has_its_section_and_what_is_shown_there_builds():
    page = (Path(plugins.__file__).parents[1] / "docs" / "sources.md").read_text(encoding="utf-8")
    shown = set()
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        shown |= {plugins.kind_of(type(s)) for s in config.sections(yaml.safe_load(block))["sources"].values()}
    headings = set(re.findall(r"^## (\w+)$", page, re.MULTILINE))
    assert headings == shown == set(plugins.kinds("sources"))
