"""What can never have an effect is refused before anything is loaded; what may not be meant is a note."""

import pytest
from helpers.runs import chat, game, imitation, policy, write

from advalign import Gate, Ramp, Stage
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.errors import ConfigError
from advalign.objectives.cispo import CISPO
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.sources.contrast import Contrast
from advalign.sources.replay import Replay
from advalign.training.schedule import Until

RL = {"policy": GRPO(source="write"), "old": CISPO(source="again")}


def replayed(stages, **fields):
    sources = {"write": write(), "again": Replay(source="write", advantage=Group(), **fields)}
    return game(sources=sources, objectives=RL, stages=stages)


REFUSED = {
    "stage without objectives": (
        lambda: imitation(stages=[Stage(steps=2, name="s", objectives=())]),
        r"^stages.s.objectives: none given, so nothing would train; leave it out for all of them.$",
    ),
    "gate of a learner that never trains": (
        lambda: game(objectives={"robust": SFT(source="chat", view="pgd")}, gates={"discriminator": Gate(metric="robust/nll", above=1.0)}),
        r"^gates.discriminator: learner 'discriminator' is trained in no stage, so it has no updates to skip.$",
    ),
    "rows that cannot be there yet": (
        lambda: replayed([Stage(steps=2, name="old", objectives=("old",)), Stage(steps=2, name="both")]),
        r"^sources.again: it has no rows in stage 'old', since no objective has read 'write' by then; ",
    ),
    "setting with a schedule": (
        lambda: imitation(
            stages=[Stage(steps=2, name="s", set={"objectives.imitate.coef": 0.5})], schedules={"objectives.imitate.coef": Ramp(end=1.0)}
        ),
        r"^stages.s.set.objectives.imitate.coef: a schedule moves it in this stage; give one of both.$",
    ),
    "end of a schedule": (
        lambda: imitation(schedules={"learners.policy.learning_rate": Ramp(start=1e-3, end=-1.0)}),
        r"^schedules.learners.policy.learning_rate: ",
    ),
    "schedule of a text": (
        lambda: imitation(schedules={"objectives.imitate.weighting": Ramp(end=1.0)}),
        r"^schedules.objectives.imitate.weighting: .* given",
    ),
    "value of a stage": (
        lambda: imitation(stages=[Stage(steps=2, name="s", set={"learners.policy.epochs": "two"})]),
        r"^stages.s.set.learners.policy.epochs: 'two' given",
    ),
    "source of an objective": (
        lambda: imitation(stages=[Stage(steps=2, name="s", set={"objectives.imitate.source": "chat"})]),
        r"^stages.s.set.objectives.imitate.source: no field of SFT that can change during a run 'source'. Known: coef, ",
    ),
    "view of a stage": (
        lambda: game(stages=[Stage(steps=2, name="s", set={"objectives.robust.view": "pdg"})]),
        r"^stages.s.set.objectives.robust.view: no view .* 'pdg'. Known: clean, pgd. Did you mean 'pgd'\?$",
    ),
    "no setting": (
        lambda: imitation(stages=[Stage(steps=2, name="s", set={"objectives.imitate": {}})]),
        r"^stages.s.set.objectives.imitate: it names no setting; write it as objectives.<name>.<field>.$",
    ),
    "section": (
        lambda: imitation(schedules={"objective.imitate.coef": Ramp(end=1.0)}),
        r"^schedules.objective.imitate.coef: no section that can change during a run 'objective'. .* Did you mean 'objectives'\?$",
    ),
    "stage of a schedule": (
        lambda: imitation(stages=[Stage(steps=2, name="warm")], schedules={"objectives.imitate.coef": Ramp(end=1.0, stage="wram")}),
        r"^schedules.objectives.imitate.coef.stage: no stage 'wram'. Known: warm. Did you mean 'warm'\?$",
    ),
    "stage in which nothing trains": (
        lambda: imitation(stages=[Stage(steps=2, name="s", set={"learners.policy.updates": 0})]),
        r"^stages.s: learners.policy.updates is 0 there, so nothing trains in it.$",
    ),
    "stage twice": (
        lambda: imitation(stages=[Stage(steps=1, name="s"), Stage(steps=2, name="s")]),
        r"^stages: 2 stages are called 's'; ",
    ),
    "objective twice": (lambda: Stage(steps=1, objectives=("a", "a")), r"objectives: 'a' is given twice"),
    "name with a dot": (
        lambda: imitation(objectives={"im.itate": SFT(source="chat")}),
        r"^objectives: 'im.itate' cannot be a name: a dot separates the parts of a path, ",
    ),
    "option of a learner": (
        lambda: imitation(model=policy(options={"lorra": {"r": 3}})),
        r"options: no option 'lorra'. Known: .* Did you mean 'lora'\?$",
    ),
    "source that nobody samples": (
        lambda: game(
            sources={"chat": chat(), "contrast": Contrast(real="chat", sampled="chat")},
            objectives={"discriminator": Discriminate(source="contrast")},
        ),
        r"^sources.contrast.sampled: source 'chat' is of kind demos, and no policy writes its texts.$",
    ),
    "loss of another learner": (
        lambda: game(adversaries={"pgd": PGD(inner=SFT(source="chat", view="pgd", learner="discriminator"))}),
        r"^adversaries.pgd.inner.learner: 'discriminator' given, and it ascends a loss of 'policy', which has the view.$",
    ),
    "until that is always met": (lambda: Until(metric="a/b", above=1, below=2), r"until is always met with above 1 and below 2"),
    "gate that is never open": (lambda: Gate(metric="a/b", above=1, below=2), r"above 1 and below 2 given, so it is never open"),
    "bound of until": (lambda: Until(metric="imitate/nll"), r"until needs a bound; give above or below."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_loaded(case, monkeypatch):
    make, sentence = REFUSED[case]
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("a model was loaded"))
    with pytest.raises(ConfigError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_what_can_be_meant_is_not_refused():
    replayed([Stage(steps=2, name="both"), Stage(steps=2, name="old", objectives=("old",))])
    replayed([Stage(steps=2, name="old", objectives=("old",))], include_current=True)
    stages = [Stage(steps=2, name="a", set={"objectives.imitate.coef": 0.5}), Stage(steps=2, name="b")]
    imitation(stages=stages, schedules={"objectives.imitate.coef": Ramp(end=1.0, stage="b")})


def test_what_a_stage_sets_is_read_as_its_field_asks_for_it():
    setting = {"objectives.policy.correction": {"level": "token", "high": 2}}
    trainer = game(stages=[Stage(steps=2, name="s", set=setting)])
    correction = trainer.run_spec.active_config(trainer.run_spec.stages[0])["objectives"]["policy"].correction
    assert (correction.level, correction.high) == ("token", 2.0)


def test_notes_on_ramps_objectives_and_bounds_that_have_no_effect():
    stages = [Stage(steps=10, name="a", objectives=("imitate",), until=Until(metric="imitate/nll", below=0.1, after=20))]
    objectives = {"imitate": SFT(source="chat"), "spare": SFT(source="chat")}
    long = Ramp(start=0.0, end=1.0, steps=21, stage="a")
    trainer = imitation(stages=stages, objectives=objectives, schedules={"objectives.imitate.coef": long}, sources={"chat": chat()})
    assert trainer.notes() == [
        "objectives: no stage activates spare.",
        "schedules.objectives.imitate.coef: it takes 21 steps, and stage 'a' has 10, so its last value is 0.45.",
        "stages.a.until.after: 20 steps given, and the stage has 10, so its length decides.",
    ]
    assert imitation(steps=30, schedules={"objectives.imitate.coef": Ramp(end=1.0, steps=30)}).notes() == []


def test_a_site_that_the_model_does_not_have_is_found_before_the_first_step():
    trainer = game(adversaries={"pgd": PGD(steps=1, sites=("layer:9",))})
    with pytest.raises(ConfigError, match=r"^adversaries.pgd.sites: 'layer:9' is outside the 2 blocks of this model"):
        trainer.start()
