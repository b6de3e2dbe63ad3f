"""Gates, stages and schedules that wait for a metric: refused before anything is loaded where it is never logged, or at the first step."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
from helpers.objectives import TABLE, build, outputs
from helpers.runs import DATA, SHORT, game, imitation

from advalign import Evaluation, Gate, Stage, TrainingArguments, plugins
from advalign.errors import ConfigError
from advalign.interfaces import Callback
from advalign.objectives.sft import SFT
from advalign.training.metric_names import MetricWatch
from advalign.training.schedule import Follow, Until


def until(metric, **fields):
    return Stage(steps=2, name="warm", until=Until(metric=metric, above=0.5), **fields)


def held(**fields):
    return Evaluation(**{"data": DATA, "sampling": SHORT, "samples": 2, **fields})


BEFORE = {
    "gate": (
        lambda: game(gates={"discriminator": Gate(metric="discriminator/acuracy", above=0.9)}),
        r"gates.discriminator.metric: no metric 'discriminator/acuracy' is logged by this run; did you mean 'discriminator/accuracy'",
    ),
    "until": (
        lambda: imitation(stages=[until("imitate/nil")]),
        r"stages.warm.until.metric: no metric 'imitate/nil' is logged by this run; did you mean 'imitate/nll'",
    ),
    "follow": (
        lambda: game(schedules={"adversaries.pgd.radius": Follow(metric="pdg/gain", target=1.0, start=0.1)}),
        r"schedules.adversaries.pgd.radius.metric: no metric 'pdg/gain' is logged by this run; did you mean 'pgd/gain'",
    ),
    "until of another stage": (
        lambda: game(stages=[until("discriminator/accuracy", objectives=("robust",)), Stage(steps=2, name="game")]),
        r"stages.warm.until.metric: no metric 'discriminator/accuracy' is logged in this stage; ",
    ),
    "evaluation that never runs": (
        lambda: imitation(stages=[until("held/accuracy")], evaluations={"held": held()}),
        r"stages.warm.until.metric: 'held/accuracy' is of an evaluation, and args.eval_steps is 0, so it is never logged.",
    ),
    "number of samples": (
        lambda: imitation(stages=[until("held/pass@4")], evaluations={"held": held()}, args=TrainingArguments(eval_steps=1)),
        r"no metric 'held/pass@4' is logged by this run; did you mean 'held/pass@[12]'",
    ),
    "nothing like it": (
        lambda: imitation(stages=[until("loss")]),
        r"stages.warm.until.metric: no metric 'loss' is logged by this run; ",
    ),
    "speed": (
        lambda: imitation(stages=[until("speed/seconds")]),
        r"no metric 'speed/seconds' is logged by this run; ",
    ),
}


@pytest.mark.parametrize("case", BEFORE)
def test_a_metric_that_is_never_logged_is_refused_before_anything_is_loaded(case, monkeypatch):
    make, sentence = BEFORE[case]
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "metric", ["imitate/nll", "imitate/loss", "policy/grad_norm", "num_truncated", "held/pass@2", "held/nll", "held/entropy/token_4"]
)
def test_what_is_logged_passes(metric):
    imitation(stages=[until(metric)], evaluations={"held": held()}, args=TrainingArguments(eval_steps=1))


@dataclass(frozen=True, kw_only=True)
class Silent(SFT):
    """Does not say what it logs."""

    metric_names: ClassVar = None


FIRST_STEP = {
    "source": (
        lambda: game(gates={"policy": Gate(metric="write/rewrd", below=0.0)}),
        r"gates.policy.metric: no metric 'write/rewrd' is logged by 'write'; did you mean 'write/reward'",
    ),
    "objective that does not say": (
        lambda: imitation(objectives={"imitate": Silent(source="chat")}, stages=[until("imitate/nil")]),
        r"stages.warm.until.metric: no metric 'imitate/nil' is logged by 'imitate'; did you mean 'imitate/nll'",
    ),
}


@pytest.mark.parametrize("case", FIRST_STEP)
def test_what_is_known_at_the_first_step_alone_is_said_there(case):
    make, sentence = FIRST_STEP[case]
    trainer = make()
    with pytest.raises(ConfigError, match=sentence):
        trainer.train(progress=False)
    assert trainer.step == 1


def test_what_some_draws_leave_out_is_waited_for_and_named_at_the_end():
    trainer = game(gates={"policy": Gate(metric="write/rewards/discriminator/corr_lenth", below=0.0)})
    watch = MetricWatch.of(trainer.run_spec, {}, trainer.args)
    watch.observe({"write/reward": 1.0})
    with pytest.warns(UserWarning, match=r"^gates.policy.metric: 'write/rewards/discriminator/corr_lenth' was never logged in this run"):
        watch.end()


def test_a_callback_may_log_names_of_its_own():
    imitation(stages=[until("mine/number")], callbacks=[Callback()])
    with pytest.raises(ConfigError, match="did you mean 'imitate/nll'"):
        imitation(stages=[until("imitate/nil")], callbacks=[Callback()])


@pytest.mark.parametrize("objective", TABLE, ids=str)
def test_every_objective_says_what_it_logs(objective):
    rows, (views, _) = build(objective), outputs(objective)
    assert objective.losses(rows, views).metrics.keys() <= objective.metric_names


def test_every_name_that_an_objective_gives_is_logged_by_it_somewhere():
    logged = {}
    for objective in TABLE:
        rows, (views, _) = build(objective), outputs(objective)
        logged.setdefault(type(objective), set()).update(objective.losses(rows, views).metrics)
    discriminates = replace(next(o for o in TABLE if plugins.kind_of(type(o)) == "latent"), role="discriminate", view="clean")
    rows, (views, _) = build(discriminates), outputs(discriminates)
    logged[type(discriminates)] |= discriminates.losses(rows, views).metrics.keys()
    for cls, names in logged.items():
        assert names == cls.metric_names, cls.__name__
