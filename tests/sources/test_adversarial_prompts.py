"""Adversarially chosen prompts: the worst is kept, fresh answers are trained on, and what it cost is counted."""

import json
import math

import pytest
import yaml
from helpers.equal import assert_equal
from helpers.games import SUMS, Table, answer
from helpers.glossary import unknown

from advalign import config
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.attacks.embedding import Embedding
from advalign.attacks.words import Words
from advalign.errors import ConfigError, RewardError
from advalign.rewards.exact_answer import ExactAnswer
from advalign.rewards.function import Function
from advalign.sources._variants import Distractors, Solver
from advalign.sources.adversarial_prompts import AdversarialPrompts
from advalign.training import checkpoint
from advalign.types import Example

CENTRED = Group(scale="none")
DIGIT = Distractors(alphabet="0123456789", length=1, separator=" = ")


def start(context, **fields):
    given = {
        "data": SUMS,
        "rewards": [ExactAnswer()],
        "batch_size": 3,
        "group_size": 2,
        "probes": 2,
        "distract": DIGIT,
        "advantage": CENTRED,
    }
    return AdversarialPrompts(**{**given, "distract": DIGIT, **fields}).start(context, "found")


class Counted(Table):
    """A policy whose answers depend on the digit d before the question: of n answers the first round(n d / 9) are wrong."""

    def __init__(self):
        super().__init__()

    def generate(self, learner, examples, n, sampling, key):
        def says(prompt):
            wrong = round(n * int(prompt[0]) / 9) if " = " in prompt.removesuffix(" =") else 0
            return ["no"] * wrong + [answer(prompt)] * (n - wrong)

        self.says[learner] = says
        return super().generate(learner, examples, n, sampling, key)


def digits(prompts):
    return [int(prompt[0]) for prompt in prompts]


def test_the_worst_of_the_candidates_is_kept_and_answered_afresh():
    context = Counted()
    groups = start(context, candidates=5, probes=9).draw(0, 0)
    (probed, chosen) = (prompts for _, prompts, _, _ in context.asked)
    assert [n for _, _, n, _ in context.asked] == [9, 2]
    assert len(probed) == 3 * 5
    # With nine probes d of them fail, so the worst of an example's five candidates is the one with the largest digit, the first of equals.
    for i, prompt in enumerate(chosen):
        options = probed[5 * i : 5 * i + 5]
        assert prompt == max(options, key=lambda p: digits([p])[0])
    # What is trained on are the fresh answers, two of each, not the probes it was chosen by.
    assert [len(g.rollouts) for g in groups] == [2, 2, 2]
    assert [g.example.prompt for g in groups] == chosen


def test_its_log_counts_the_probes_and_shows_the_choice():
    context = Counted()
    runtime = start(context, candidates=5, probes=9)
    runtime.draw(0, 0)
    probed, chosen = digits(context.asked[0][1]), digits(context.asked[1][1])
    logs = runtime.logs
    assert logs["num_probes"] == 3 * 5 * 9
    # One token per character in this run; a wrong answer has two. Counted by hand from the texts.
    says = context.says["policy"]
    texts = [t for p in context.asked[0][1] for t in ["no"] * int(p[0]) + [answer(p)] * (9 - int(p[0]))]
    assert logs["probe_tokens"] == sum(len(t) for t in texts)
    assert says("9 = 1 + 2 =") is not None
    assert logs["probed/all"] == pytest.approx(1 - sum(probed) / 15 / 9)
    assert logs["probed/kept"] == pytest.approx(1 - sum(chosen) / 3 / 9)


@pytest.mark.parametrize("keep", ["regret", "learnability"])
def test_what_cannot_be_solved_is_left_out_by_regret_and_learnability(keep):
    # Two probes: digits 0 to 2 fail never, 3 to 6 once (round(2 d / 9) = 1), 7 to 9 twice. Only those that fail once are worth anything.
    context = Counted()
    start(context, keep=keep, candidates=30).draw(0, 0)
    assert all(3 <= d <= 6 for d in digits(context.asked[1][1]))
    context = Counted()
    start(context, keep="failure", candidates=30).draw(0, 0)
    assert all(d >= 7 for d in digits(context.asked[1][1]))


def test_a_fraction_of_the_prompts_stays_clean_and_is_not_probed():
    context = Counted()
    runtime = start(context, batch_size=4, clean=0.5, candidates=3)
    runtime.draw(0, 0)
    assert len(context.asked[0][1]) == 2 * 3
    assert [p.count("=") for p in context.asked[1][1]] == [1, 1, 2, 2]
    assert runtime.logs["accuracy/clean"] == 1.0


def test_one_candidate_and_no_probes_is_domain_randomisation():
    context = Counted()
    runtime = start(context, candidates=1, probes=0, batch_size=400)
    runtime.draw(0, 0)
    assert len(context.asked) == 1
    assert runtime.logs["num_probes"] == 0.0
    # Ten digits, 40 of each expected, standard deviation sqrt(400 * 0.1 * 0.9) = 6.
    drawn = digits(context.asked[0][1])
    assert all(abs(drawn.count(d) - 40) < 4 * 6 for d in range(10))


def test_the_first_seed_draws_the_same_and_another_step_does_not():
    prompts = []
    for step in (0, 0, 1):
        context = Counted()
        start(context).draw(step, 0)
        prompts.append([[p.split(" = ")[0] for p in asked] for _, asked, _, _ in context.asked])
    assert prompts[0] == prompts[1] != prompts[2]


def test_rewrites_are_the_rows_of_the_same_id(tmp_path):
    def written(name, prompts):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"id": str(i), "prompt": p, "answer": "3"}) + "\n" for i, p in prompts))
        return str(file)

    plain = written("plain", [(0, "1 + 2 ="), (1, "2 + 1 =")])
    noisy = written("noisy", [(1, "9 = 2 + 1 ="), (0, "9 = 1 + 2 =")])
    calm = written("calm", [(0, "0 = 1 + 2 ="), (1, "0 = 2 + 1 =")])
    context = Counted()
    start(context, data=plain, distract=None, rewrites=[calm, noisy], candidates=2, batch_size=2).draw(0, 0)
    assert sorted(context.asked[0][1]) == sorted(["0 = 1 + 2 =", "9 = 1 + 2 =", "0 = 2 + 1 =", "9 = 2 + 1 ="])
    assert sorted(context.asked[1][1]) == ["9 = 1 + 2 =", "9 = 2 + 1 ="]
    short = written("short", [(0, "5 = 1 + 2 =")])
    with pytest.raises(ConfigError, match=r"^sources.found.rewrites.1: example '1' is not there; every example needs .*"):
        start(context, data=plain, distract=None, rewrites=[calm, short])


# ----------------------------------------------------------------------------------------------------- a text attack

WORDY = "please add apples: 1 + 2 ="


class Fooled(Table):
    """Answers WORDY right, and any other wording of it wrong."""

    def generate(self, learner, examples, n, sampling, key):
        self.says[learner] = lambda prompt: ["3" if prompt == WORDY else "no"] * n
        return super().generate(learner, examples, n, sampling, key)


@pytest.fixture
def wordy(tmp_path):
    file = tmp_path / "wordy.jsonl"
    file.write_text(json.dumps({"id": "a", "prompt": WORDY, "answer": "3"}) + "\n")
    return str(file)


def test_an_attack_of_texts_searches_with_the_policy_as_its_classifier(wordy):
    context = Fooled()
    runtime = start(context, data=wordy, distract=None, attack=Words(max_changed=0.5), candidates=40, batch_size=1, probes=3)
    (group,) = runtime.draw(0, 0)
    assert group.example.prompt != WORDY
    assert group.example.prompt.endswith("1 + 2 =")  # numbers and signs are no words
    assert [r.text for r in group.rollouts] == ["no", "no"]
    assert runtime.logs["attack_success"] == 1.0
    queries = sum(len(prompts) for _, prompts, _, _ in context.asked[:-1])
    assert runtime.logs["num_probes"] == 3 * queries
    assert 2 <= queries <= 40
    assert len({key for _, _, _, key in context.asked}) == len(context.asked)  # every call has a stream of its own


def test_where_the_attack_finds_nothing_the_prompt_stays(wordy):
    context = Table(policy=lambda prompt: ["3"] * (2 if len(context.asked) and context.asked[-1][2] == 2 else 3))
    runtime = start(context, data=wordy, distract=None, attack=Words(max_changed=0.5), candidates=5, batch_size=1, probes=3)
    (group,) = runtime.draw(0, 0)
    assert group.example.prompt == WORDY
    assert runtime.logs["attack_success"] == 0.0
    assert runtime.logs["num_probes"] == 3 * 5


def test_the_solver_is_a_classifier_of_fails_and_solves():
    problems = [Example(prompt="a", id="a"), Example(prompt="b", id="b")]
    solver = Solver(problems, lambda questions: [0.25 if e.id == "a" else 1.0 for e, _ in questions])
    assert [(e.label, e.pair) for e in solver.classified()] == [(1, "0"), (1, "1")]
    p = solver.predict(["x", "y"], ["0", "1"]).exp()
    assert p[:, 1].tolist() == pytest.approx([0.25, 1.0])
    assert p[:, 0].tolist() == pytest.approx([0.75, 1e-6])
    assert solver.num_queries == 2
    with pytest.raises(ConfigError, match="does not say which problem"):
        solver.predict(["x"])


# -------------------------------------------------------------------------------------------------- refused, and real

REFUSED = {
    "two ways": ({"rewrites": ["task:arithmetic"]}, "give one of distract, rewrites and attack; .*"),
    "no way": ({"distract": None}, "give one of distract, rewrites and attack; .*"),
    "a way to choose": ({"keep": "regrets"}, "no way to choose 'regrets'. .*Did you mean 'regret'.*"),
    "a gradient attack": (
        {"distract": None, "attack": Embedding(adversary=PGD(radius=0.1, steps=1))},
        "an attack searches for failure, by texts alone; .*",
    ),
    "regret of an attack": ({"distract": None, "attack": Words(), "keep": "regret"}, "an attack searches for failure, .*"),
    "no probes": ({"probes": 0}, "0 given; with keep: failure at least 1."),
    "one probe": ({"probes": 1, "keep": "learnability"}, "1 given; with keep: learnability at least 2."),
    "a fraction": ({"clean": 1.0}, "1 given; .*"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_sentence(case):
    fields, sentence = REFUSED[case]
    with pytest.raises(ConfigError, match=rf"^sources.adversarial_prompts(\.\w+)?: {sentence}$"):
        start(Counted(), **fields)


def test_distractors_and_scores_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"^distract.alphabet: '' given; .*"):
        Distractors(alphabet="")
    with pytest.raises(ConfigError, match=r"^distract.length: 0 given; a whole number of at least 1 is expected\.$"):
        Distractors(alphabet="a", length=0)
    with pytest.raises(ConfigError, match=r"^distract.placement: no placement 'rewrite'. Known: prefix, suffix."):
        Distractors(alphabet="a", placement="rewrite")
    high = Function(fn=lambda completions: [3.0] * len(completions))
    with pytest.raises(RewardError, match=r"^sources.found.keep: learnability is of scores in \[0, 1\], .*"):
        start(Counted(), rewards=[high], keep="learnability").draw(0, 0)


def test_an_answer_nobody_can_judge_is_no_failure():
    # Every other answer abstains: the mean is over the rest, and the row leaves the batch.
    unsure = Function(fn=lambda completions: [math.nan if i % 2 else 1.0 for i in range(len(completions))])
    runtime = start(Counted(), rewards=[unsure], candidates=2)
    groups = runtime.draw(0, 0)
    assert [len(g.rollouts) for g in groups] == [1, 1, 1]
    assert (runtime.logs["probed/all"], runtime.logs["abstained"]) == (1.0, 3.0)


RUN = """
learners:
  policy: {model: "scratch:tiny-gpt2?n_embd=32", tokenizer: {kind: characters, data: "task:arithmetic"}, max_length: 40}
sources:
  hard:
    kind: adversarial_prompts
    data: "task:arithmetic"
    batch_size: 4
    group_size: 4
    candidates: 2
    clean: 0.25
    probes: 2
    sampling: {max_new_tokens: 3}
    distract: {alphabet: "0123456789 ", length: 3, separator: "= "}
    rewards: [{kind: format, pattern: ".*[01].*"}]
    advantage: group
objectives: {policy: {kind: grpo, source: hard}}
args: {max_steps: 4, save_steps: 2}
"""


def test_a_run_resumes_bit_for_bit_and_logs_what_the_glossary_says(tmp_path):
    def trainer(folder, steps):
        described = yaml.safe_load(RUN)
        described["args"] |= {"output_dir": str(tmp_path / folder), "max_steps": steps}
        return config.trainer(described)

    history = trainer("whole", 4).train(progress=False)
    trainer("broken", 2).train(progress=False)
    rest = trainer("broken", 4).train(resume=True, progress=False)
    assert rest == history[2:]
    whole, broken = (tmp_path / name / "checkpoint-4" for name in ("whole", "broken"))
    assert_equal(checkpoint.read_state(whole), checkpoint.read_state(broken))
    assert (whole / "learner.policy.safetensors").read_bytes() == (broken / "learner.policy.safetensors").read_bytes()
    names = {"objective": ["policy"], "source": ["hard"], "learner": ["policy"], "adversary": [], "evaluation": []}
    assert unknown({name for entry in history for name in entry}, names) == []
    assert history[0]["hard/num_probes"] == 3 * 2 * 2
