"""Every mistake is one sentence: where it is, what was given, what is allowed, and the nearest match."""

from dataclasses import dataclass

import pytest
from helpers.runs import WORDS, chat, discriminator, game, imitation, policy, write

from advalign import Evaluation, Frozen, Learner, Ramp, Stage, Trainer, TrainingArguments
from advalign.advantages.gae import GAE
from advalign.adversaries.pgd import PGD
from advalign.errors import AdvalignError, BudgetError, ConfigError, RewardError
from advalign.interfaces import Reward
from advalign.objectives.consistency import Consistency
from advalign.objectives.dapo import DAPO
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.dpo import DPO
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.sft import SFT
from advalign.objectives.value import Value
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.rewards.function import Function
from advalign.sources.contrast import Contrast
from advalign.sources.prompts import Prompts

AT_START = {
    "view": (
        lambda: game(objectives={"robust": SFT(source="chat", view="pdg")}),
        r"objectives.robust.view: no view .* 'pdg'. Known: clean, pgd. Did you mean 'pgd'\?",
    ),
    "view of a term that a schedule starts at zero": (
        lambda: game(objectives={"robust": SFT(source="chat", view="pdg")}, schedules={"objectives.robust.coef": Ramp(end=1.0)}),
        r"objectives.robust.view: .* Did you mean 'pgd'\?",
    ),
    "source": (
        lambda: game(objectives={"imitate": SFT(source="chta")}),
        r"objectives.imitate.source: no source 'chta'. Known: chat, contrast, write. Did you mean 'chat'\?",
    ),
    "learner": (
        lambda: game(objectives={"imitate": SFT(source="chat", learner="polcy")}),
        r"objectives.imitate.learner: no learner 'polcy'. Known: discriminator, policy. Did you mean 'policy'\?",
    ),
    "rows": (
        lambda: game(objectives={"policy": GRPO(source="chat")}),
        r"objectives.policy.source: GRPO reads RolloutRows, but source 'chat' builds DemoRows.",
    ),
    "rows of a discriminator": (
        lambda: game(objectives={"discriminator": Discriminate(source="write")}),
        r"objectives.discriminator.source: Discriminate reads LabelRows, but source 'write' builds RolloutRows.",
    ),
    "warm-up of a constant rate": (
        lambda: imitation(model=policy(warmup_steps=5)),
        r"learners: lr_scheduler_type 'constant' has no warm-up; use 'constant_with_warmup', or warmup_steps 0.",
    ),
    "head of the learner": (
        lambda: imitation(model=policy(head="value")),
        r"objectives.imitate: SFT reads a model with head 'policy', but learner 'policy' has head 'value'.",
    ),
    "reference of kl": (
        lambda: game(objectives={"near": KL(source="write")}),
        r"objectives.near: KL compares with the reference; add frozen: \{reference: \{learner: policy\}\}.",
    ),
    "reference of dpo": (
        lambda: game(objectives={"prefer": DPO(source="chat")}),
        r"objectives.prefer.source: DPO reads PairRows, but source 'chat' builds DemoRows.",
    ),
    "frozen of nobody": (
        lambda: game(frozen={"reference": Frozen(learner="polic")}),
        r"frozen.reference.learner: no learner 'polic'. Known: discriminator, policy. Did you mean 'policy'\?",
    ),
    "source of a source": (
        lambda: game(
            sources={"chat": chat(), "contrast": Contrast(real="chta")}, objectives={"discriminator": Discriminate(source="contrast")}
        ),
        r"sources.contrast.real: no source 'chta'. Known: chat, contrast. Did you mean 'chat'\?",
    ),
    "critic": (
        lambda: game(sources={"write": write(advantage=GAE())}, objectives={"policy": DAPO(source="write")}),
        r"sources.write.advantage: GAE needs a critic; add a learner with head: value.",
    ),
    "objective of a stage": (
        lambda: game(stages=[Stage(name="warm", steps=1, objectives=("robst",))]),
        r"stages.warm.objectives: no objective 'robst'. Known: discriminator, policy, robust. Did you mean 'robust'\?",
    ),
    "set on a source": (
        lambda: game(stages=[Stage(name="warm", steps=1, set={"sources.chat.batch_size": 2})]),
        r"stages.warm.set.sources.chat.batch_size: only objectives, adversaries and learners can change during a run; a source is started",
    ),
    "schedule on a source": (
        lambda: game(schedules={"sources.chat.batch_size": Ramp(start=1.0, end=2.0)}),
        r"schedules.sources.chat.batch_size: only objectives, adversaries and learners can change",
    ),
    "set of nothing": (
        lambda: game(stages=[Stage(name="warm", steps=1, set={"objectives.robust.cof": 2})]),
        r"stages.warm.set.objectives.robust.cof: no field of SFT 'cof'. Known: .*. Did you mean 'coef'\?",
    ),
    "schedule of nothing": (
        lambda: game(schedules={"objectives.robst.coef": Ramp(start=1.0, end=2.0)}),
        r"schedules.objectives.robst.coef: no entry 'robst'. Known: discriminator, policy, robust. Did you mean 'robust'\?",
    ),
    "schedule below a number": (
        lambda: game(schedules={"objectives.robust.coef.high": Ramp(start=1.0, end=2.0)}),
        r"schedules.objectives.robust.coef.high: 'high' is below a float, which has no named parts.",
    ),
    "ramp": (
        lambda: Ramp(end=1.0, kind="linaer"),
        r"schedules.kind: no ramp 'linaer'. Known: constant, cosine, linear. Did you mean 'linear'\?",
    ),
    "divergence from zero": (
        lambda: imitation(
            objectives={"agree": Consistency(source="chat", view="pgd", output="tokens")}, adversaries={"pgd": PGD(random_start=False)}
        ),
        r"objectives.agree: the gradient of a divergence is zero at delta = 0, so adversary 'pgd' would never move",
    ),
    "delta of a group": (
        lambda: game(adversaries={"pgd": PGD(share="group")}),
        r"adversaries.pgd.where: one delta per group can only act on what the group shares; set where: prompt.",
    ),
    "updates": (lambda: policy(minibatches=0), r"learners.minibatches: 0 given; a whole number of at least 1"),
    "rewards": (lambda: write(rewards=[]), r"sources.prompts.rewards: \(\) given; at least 1 entry is expected."),
    "neither model nor learners": (
        lambda: Trainer(sources={"chat": chat()}, objectives={"imitate": SFT(source="chat")}),
        r"Trainer: give either model or learners.",
    ),
}

IN_THE_RUN = {
    "reward of nobody": (
        lambda: game(
            sources={"write": write(rewards=[DiscriminatorReward(learner="discrimnator")])}, objectives={"policy": GRPO(source="write")}
        ),
        ConfigError,
        r"sources.write.rewards.0.learner: no learner 'discrimnator'. Known: discriminator, policy. Did you mean 'discriminator'\?",
    ),
    "reward that throws": (
        lambda: rewarded(lambda completions: 1 / 0),
        RewardError,
        r"rewards.function: '.*' failed on 12 completions with ZeroDivisionError: division by zero",
    ),
    "reward of another length": (
        lambda: rewarded(lambda completions: [1.0]),
        RewardError,
        r"rewards.function: '.*' returned 1 scores for 12 completions.",
    ),
    "plugin reward of another length": (
        lambda: game(sources={"write": write(rewards=[Short()])}, objectives={"policy": GRPO(source="write")}),
        RewardError,
        r"sources.write: reward '.*Short' gave 2 scores for 12 responses; one each is needed.",
    ),
    "reward that always abstains": (
        lambda: rewarded(lambda completions: [None] * len(completions)),
        RewardError,
        r"sources.write: the rewards abstained on every response of step 0",
    ),
    "tokenizers": (
        lambda: game(
            learners={"policy": policy(), "discriminator": discriminator(), "student": policy(tokenizer={**WORDS, "kind": "characters"})},
            objectives={"copy": GRPO(source="write", learner="student")},
        ),
        ConfigError,
        r"objectives.copy: learner 'student' and the sampler 'policy' have different tokenizers; rollouts are never re-tokenised",
    ),
    "value without returns": (
        lambda: game(
            learners={"policy": policy(), "discriminator": discriminator(), "critic": policy(head="value")},
            objectives={"value": Value(source="write")},
        ),
        ConfigError,
        r"objectives.value: source 'write' estimates no returns; give it `advantage: \{kind: gae\}`.",
    ),
    "budget": (
        lambda: imitation(args=TrainingArguments(max_steps=1, token_budget=5)),
        BudgetError,
        r"args.token_budget: 1 row\(s\) of \d+ tokens of source 'chat' must stay together and need \d+, the budget is 5; raise it.",
    ),
    "scratch preset": (
        lambda: imitation(model=policy(model="scratch:tny")),
        ConfigError,
        r"learners.policy.model: no scratch preset 'tny'. Known: .*. Did you mean 'tiny'\?",
    ),
    "tokenizer from scratch": (
        lambda: imitation(model=Learner(model="scratch:tiny", tokenizer={"kind": "words"})),
        ConfigError,
        r"learners.policy.tokenizer: a tokenizer from scratch needs data",
    ),
    "evaluation of nobody": (
        lambda: imitation(
            evaluations={"held": Evaluation(data="task:constraints", learner="discriminator")}, args=TrainingArguments(eval_steps=1)
        ),
        ConfigError,
        r"evaluations.held.learner: no learner 'discriminator'. Known: policy.",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Short(Reward):
    """Two scores, however many responses there are."""

    def start(self, context):
        return lambda groups: [1.0, 2.0]


def rewarded(fn) -> Trainer:
    sources = {"write": write(rewards=[Function(fn=fn)])}
    assert isinstance(sources["write"], Prompts)
    return game(sources=sources, objectives={"policy": GRPO(source="write")})


def one_sentence(error: AdvalignError) -> bool:
    text = str(error)
    return "\n" not in text and text[-1] in ".?!"


@pytest.mark.parametrize("case", AT_START)
def test_refused_before_anything_is_loaded(case):
    build, sentence = AT_START[case]
    with pytest.raises(ConfigError, match=rf"^{sentence}") as caught:
        build()
    assert one_sentence(caught.value), str(caught.value)


@pytest.mark.parametrize("case", IN_THE_RUN)
def test_a_run_stops_with_a_sentence(case):
    build, kind, sentence = IN_THE_RUN[case]
    with pytest.raises(kind, match=rf"^{sentence}"):
        build().train(progress=False)


def test_sources_that_wait_for_each_other_are_refused():
    sources = {"a": Contrast(real="b"), "b": Contrast(real="a")}
    with pytest.raises(ConfigError, match=r"sources.a: it waits for itself \(a -> b -> a\)."):
        game(sources=sources, objectives={"discriminator": Discriminate(source="a")}).train(progress=False)
