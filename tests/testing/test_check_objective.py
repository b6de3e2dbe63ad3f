"""check_objective passes every built-in objective, and names the slip of each broken one."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from advalign import plugins
from advalign.errors import ConfigError
from advalign.functional import logprobs, weights
from advalign.interfaces import Objective
from advalign.testing import _rows, check_objective
from advalign.types import DemoRows, Losses, Weights

REQUIRED = {"dr_grpo": {"length": 7}, "latent": {"site": "layer:1"}}


@dataclass(frozen=True, kw_only=True)
class Focal(Objective):
    """l_t = -(1 - p_t)^2 log p_t."""

    row_types: ClassVar[tuple[type, ...]] = (DemoRows,)

    @property
    def reads(self):
        return {self.view: frozenset({"logprobs"})}

    def weights(self, rows):
        return weights.token(rows.tokens.target)

    def losses(self, rows, views):
        logp = logprobs.zero_off_target(views[self.view].logprobs, rows.tokens.target)
        return Losses(-((1 - logp.exp()) ** 2) * logp)


class Averages(Focal):
    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values.mean())


class PerRow(Focal):
    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values.sum(1))


class MeanInside(Focal):
    """The right shape, but every loss is compared with the mean of its micro-batch."""

    def losses(self, rows, views):
        values = super().losses(rows, views).values
        return Losses((values - values.mean()).square())


class Mutates(Focal):
    def losses(self, rows, views):
        rows.tokens.target[:, 2] = False
        return super().losses(rows, views)


class Undeclared(Focal):
    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values - views[self.view].entropy)


class UndeclaredAnnotation(Focal):
    row_types = (*plugins.resolve("objectives", "grpo").row_types,)

    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values - rows.ref_logprobs)


class OtherView(Focal):
    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values - views["reference"].logprobs)


class Raises(Focal):
    """A mistake that has nothing to do with what it declares."""

    def losses(self, rows, views):
        raise RuntimeError("no such luck")


class Undecorated(Focal):
    """Its field is no option."""

    gamma: float = 2.0


class TimesTarget(Focal):
    """nan * 0 is nan: what lies off target must be cut before it is used."""

    def losses(self, rows, views):
        logp = views[self.view].logprobs
        return Losses(-((1 - logp.exp()) ** 2) * logp * rows.tokens.target)


class Padding(Focal):
    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values / rows.tokens.ids.shape[1])


class Detached(Focal):
    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values.detach())


class BareMetric(Focal):
    def losses(self, rows, views):
        values = super().losses(rows, views).values
        return Losses(values, metrics={"mean": values.mean()})


class CountsEmptyRows(Focal):
    def weights(self, rows):
        values = rows.tokens.target.double()
        return Weights(values, torch.tensor(float(len(values)), dtype=torch.float64))


class PairMean(Focal):
    """Divides by the number of rows in front of it."""

    def losses(self, rows, views):
        return Losses(super().losses(rows, views).values / rows.tokens.ids.shape[0])


class NoReads(Focal):
    @property
    def reads(self):
        return {self.view: frozenset({"logprob"})}


class Vanishing(Focal):
    def losses(self, rows, views):
        logp = logprobs.zero_off_target(views[self.view].logprobs, rows.tokens.target)
        return Losses((0 * logp).abs().sqrt())


SLIPS = {
    Averages: "averaged to one number",
    PerRow: r"losses have shape \(8,\) and weights \(8, 7\)",
    MeanInside: "off target|micro-batches",
    Mutates: "writes into its rows",
    Undeclared: "reads the output 'entropy', which `reads` does not declare",
    UndeclaredAnnotation: "losses raised TypeError: .*columns of the rows that `annotations` does not name are None",
    OtherView: "reads the view 'reference', which `reads` does not declare",
    Raises: r"losses raised RuntimeError: no such luck$",
    Undecorated: r"Undecorated is not decorated with @dataclass\(frozen=True, kw_only=True\)",
    TimesTarget: "off target",
    Padding: "off target",
    Detached: "no gradient",
    BareMetric: "metric 'mean' is not a pair|TypeCheckError",  # the tests of this library also check annotations
    CountsEmptyRows: "rows without a target token change",
    PairMean: "differs from the sum over its micro-batches",
    NoReads: "`reads` names 'logprob'",
    Vanishing: "gradient with respect to 'logprobs' .* is not finite",
}


def default(cls):
    required = REQUIRED.get(plugins.kind_of(cls), {})
    try:
        return cls(source="s", **required)
    except ConfigError:  # a comparison of two views needs another than clean
        return cls(source="s", view="pgd")


@pytest.mark.parametrize("cls", plugins.all("objectives"), ids=lambda cls: cls.__name__)
def test_every_built_in_objective_keeps_the_contract(cls):
    check_objective(default(cls))


def test_an_objective_of_ones_own_keeps_it():
    check_objective(Focal(source="any"))
    check_objective(Focal(source="any", view="pgd"))


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"(?s){cls.__name__}: .*({says})"):
        check_objective(cls(source="any"))


def test_rows_of_ones_own():
    """A container with a column of its own; the rows are handed in."""

    @dataclass(frozen=True, kw_only=True)
    class Weighted(DemoRows):
        factor: torch.Tensor

    class Scaled(Focal):
        row_types = (Weighted,)

        def weights(self, rows):
            values = super().weights(rows).values * rows.factor[:, None]
            return Weights(values, values.sum())

    rows = Weighted(tokens=_rows.tokens(), factor=torch.linspace(0.5, 2.0, 8, dtype=torch.float64))
    check_objective(Scaled(source="any"), rows)
    with pytest.raises(AssertionError, match="no rows to check it with"):
        check_objective(Scaled(source="any"))
    assert replace(Scaled(source="any"), coef=2.0).coef == 2.0
