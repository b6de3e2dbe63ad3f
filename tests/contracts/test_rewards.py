"""Every reward: one finite score per rollout in order, and each formula against numbers worked by hand."""

import math
from dataclasses import dataclass, field
from functools import partial

import pytest

from advalign import plugins
from advalign.errors import ConfigError, RewardError
from advalign.rewards import ExactAnswer, Format, Function, Learner, Length
from advalign.rewards.exact_answer import final_answer
from advalign.types import Example, Rollout, RolloutGroup


@dataclass
class Context:
    """Scores a text by its length, as version 7; remembers what it was asked."""

    asked: list = field(default_factory=list)

    def score(self, learner, prompts, texts, finished):
        self.asked.append((learner, list(prompts), list(texts), list(finished)))
        return [float(len(text)) for text in texts], 7


def rollout(text, length=1, finished=True):
    return Rollout(response_ids=list(range(length)), sampler_logprobs=[0.0] * length, text=text, finished=finished)


def group(example, *texts):
    return RolloutGroup(example=example, prompt_ids=[1], rollouts=[text if isinstance(text, Rollout) else rollout(text) for text in texts])


def score(reward, *groups, context=None):
    return list(reward.start(context or Context())(groups))


def count_letters(prompts, completions):
    return [len(text) for text in completions]


CASES = {
    "exact_answer": {},
    "format": {},
    "length": {},
    "function": {"fn": count_letters},
    "learner": {"learner": "judge"},
}
GROUPS = (
    group(Example(prompt="p", answer="1"), "1", "2"),
    group(Example(prompt="q", answer="2"), rollout("2", 20480)),
    group(Example(prompt="r", answer="3")),
    group(Example(prompt="s", answer="4"), "4", "<think>a</think><answer>4</answer>", "five"),
)


@pytest.mark.parametrize("cls", plugins.all("rewards"))
def test_one_score_per_rollout_in_order_and_the_same_alone_as_in_company(cls):
    reward = cls(**CASES[plugins.kind_of(cls)])
    together = score(reward, *GROUPS)
    alone = [s for g in GROUPS for r in g.rollouts for s in score(reward, group(g.example, r))]
    assert together == alone
    assert len(together) == 6
    assert all(type(s) is float and math.isfinite(s) for s in together)
    assert len(set(together)) > 1, "a reward that tells nothing apart"
    assert reward.weight == 1.0


# ----------------------------------------------------------------------------------------------------- exact answer


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("so 48 / 2 = 24 and 48 + 24 = 72\n#### 72", "72", 1),
        ("#### 72 clips\nbut 73", "72", 1),
        ("#### 71 ... #### 72", "72", 1),
        ("72 at first, then 73", "72", 0),
        ("we get 72.", "72", 1),
        ("it costs $1,234.50", "1234.5", 1),
        ("\\boxed{\\frac{1}{2}}", "0.5", 1),
        ("first \\boxed{3}, then \\boxed{x^{2} + 1}", "x^{2}+1", 1),
        ("The answer is Paris.", "paris", 1),
        ("the answer is not London", "London", 0),
        ("Answer: (B)", "(B)", 1),
        ("it is 1/3", "0.3333333", 1),  # relative error 1e-7, within 1e-6
        ("it is 1/3", "0.33", 0),
        ("\\boxed{x^2}", "2", 0),  # an expression that holds the number is not the number
        ("\\boxed{x = 2}", "2", 1),
        ("\\boxed{3x - 2y = 0}", "0", 0),
        ("\\boxed{\\sqrt 2}", "2", 0),
        ("the answer is 2 or 3", "2", 0),
        ("the answer is about $5 a mile.", "5", 1),
        ("#### 24 + 48 = 72", "72", 1),
        ("\\boxed{72\\%}", "72", 1),
        ("**72**", "72", 1),
        ("a " * 20_000 + "answer is " + "a " * 20_000, "5", 0),
        ("-5", "5", 0),
        ("10 - 5", "10 - 5", 0),  # a last number is no expression
        ("5", "5.0", 1),
        ("no number at all", "5", 0),
        ("1/0", "5", 0),
        ("9" * 5000, "5", 0),
        ("1e999999999", "5", 0),
        ("", "5", 0),
        ("72", "48 + 24 = 72\n#### 72", 1),  # the reference may be a worked solution
        ("\\boxed{72}", "\\boxed{72}", 1),
    ],
)
def test_exact_answer_by_hand(text, answer, expected):
    assert score(ExactAnswer(engine="numeric"), group(Example(prompt="?", answer=answer), text)) == [expected]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("#### 1\n\\boxed{2}", "1"),
        ("answer is 3, \\boxed{2}", "2"),
        ("4. So the answer is 3", "3"),
        ("she answered 9 and 80 is the answer", "80"),
        ("the answer is: 3", "3"),
        ("Answer:\n3", "3"),
        ("1, 2, 3", "3"),
        ("\\boxed{never closed", None),
        ("nothing", None),
    ],
)
def test_where_the_final_answer_stands(text, found):
    assert final_answer(text) == found


def test_the_example_s_own_verifier_goes_first_and_without_reference_the_reward_abstains():
    own = Example(prompt="?", answer="1", verify=lambda text: 0.25 if text == "2" else 0.0)
    assert score(ExactAnswer(), group(own, "2", "1")) == [0.25, 0.0]
    assert math.isnan(score(ExactAnswer(), group(Example(prompt="?"), "1"))[0])


def test_a_verifier_that_fails_stops_the_run():
    def verify(text):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        score(ExactAnswer(), group(Example(prompt="?", verify=verify), "1"))


def test_the_symbolic_engine_where_it_is_installed_and_its_refusal_where_not(monkeypatch):
    from advalign.rewards import exact_answer

    example = Example(prompt="?", answer="x^2 - 1")
    assert score(ExactAnswer(engine="numeric"), group(example, "\\boxed{(x-1)(x+1)}")) == [0]
    monkeypatch.setattr(exact_answer.importlib.util, "find_spec", lambda name: None)
    assert score(ExactAnswer(engine="auto"), group(example, "\\boxed{(x-1)(x+1)}", "\\boxed{x^2-1}")) == [0, 1]
    with pytest.raises(ConfigError, match="not installed"):
        ExactAnswer(engine="math_verify").start(Context())
    monkeypatch.undo()
    pytest.importorskip("math_verify", reason="the optional package math-verify is not installed")
    assert score(ExactAnswer(engine="math_verify"), group(example, "\\boxed{(x-1)(x+1)}", "\\boxed{(x-1)(x+2)}")) == [1, 0]


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'numeric'"):
        ExactAnswer(engine="numerical")


# ----------------------------------------------------------------------------------------------------------- format


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a\nb</think>\n<answer>4</answer>", 1),
        ("  <think></think><answer></answer>\n", 1),
        ("<think>a</think><answer>4</answer> more", 0),
        ("so <think>a</think><answer>4</answer>", 0),
        ("<think>a</think><think>b</think><answer>4</answer>", 0),
        ("<think>a</think><answer>4</answer><answer>5</answer>", 0),
        ("<answer>4</answer><think>a</think>", 0),
        ("<think>a<answer>4</answer>", 0),
        ("<think>" * 3000, 0),
    ],
)
def test_think_answer_tags(text, expected):
    assert score(Format(), group(Example(prompt="?"), text)) == [expected]


def test_a_pattern_matches_the_whole_text_or_not_at_all():
    assert score(Format(pattern="[0-9]+"), group(Example(prompt="?"), "42", "42!", " 42 ")) == [1, 0, 1]
    with pytest.raises(ConfigError, match=r"rewards\.format\.pattern"):
        Format(pattern="(")


# ----------------------------------------------------------------------------------------------------------- length


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (80, 0), (85, -0.25), (90, -0.5), (100, -1), (101, -1), (5000, -1)])
def test_soft_overlong_punishment(n, expected):
    # m = 100, b = 20: free up to 80, then -(n - 80) / 20, at most -1
    assert score(Length(max_length=100, buffer=20), group(Example(prompt="?"), rollout("x", n))) == [expected]


@pytest.mark.parametrize(("n", "expected"), [(50, 0), (45, -0.5), (55, -0.5), (40, -1), (0, -1), (49, -0.1)])
def test_distance_from_a_target_length(n, expected):
    assert score(Length(buffer=10, target=50), group(Example(prompt="?"), rollout("x", n))) == [expected]


@pytest.mark.parametrize("wrong", [{"buffer": 0}, {"max_length": 10, "buffer": 11}, {"target": -1}])
def test_length_refuses_what_makes_no_sense(wrong):
    with pytest.raises(ConfigError, match=r"rewards\.length"):
        Length(**wrong)


# --------------------------------------------------------------------------------------------------------- function


def test_a_function_sees_columns_as_lists_with_one_entry_per_completion():
    seen = {}

    def fn(prompts, completions, level, **columns):
        seen.update(columns, prompts=prompts, completions=completions, level=level)
        return [1, None, 0.5]

    first, second = Example(prompt="p", answer="1", meta={"level": 3}), Example(prompt="q", meta={"topic": "sums"})
    scores = score(Function(fn=fn), group(first, "a", rollout("b", 2)), group(second, "c"))
    assert scores[0] == 1
    assert math.isnan(scores[1])
    assert scores[2] == 0.5
    assert seen["prompts"] == ["p", "p", "q"]
    assert seen["completions"] == ["a", "b", "c"]
    assert seen["completion_ids"] == [[0], [0, 1], [0]]
    assert seen["answer"] == ["1", "1", None]
    assert seen["level"] == [3, 3, None]
    assert seen["topic"] == [None, None, "sums"]


def test_a_dotted_path_and_a_partial_work(tmp_path, monkeypatch):
    (tmp_path / "lab_of_rewards.py").write_text("def brevity(completions, **_):\n    return [-len(c) for c in completions]\nx = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert score(Function(fn="lab_of_rewards.brevity"), group(Example(prompt="?"), "abc", "")) == [-3, 0]
    for path in ("lab_of_rewards.gravity", "no_such_lab.brevity", "lab_of_rewards.x"):
        with pytest.raises(ConfigError, match=path):
            Function(fn=path).start(Context())
    with pytest.raises(ConfigError, match="dotted path"):
        Function(fn="brevity")

    def scaled(completions, factor):
        return [factor * len(c) for c in completions]

    assert score(Function(fn=partial(scaled, factor=2)), group(Example(prompt="?"), "abc")) == [6]


def test_a_failing_function_stops_the_run_and_says_which():
    def divides(completions):
        return [1 / 0 for _ in completions]

    with pytest.raises(RewardError, match=r"divides' failed on 2 completions with ZeroDivisionError: division by zero") as caught:
        score(Function(fn=divides), group(Example(prompt="?"), "a", "b"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("returned", "sentence"),
    [([1.0], "1 scores for 2"), (None, "NoneType"), (["good", "bad"], "not a list of numbers"), ([1.0, math.inf], "infinite")],
)
def test_wrong_returns_are_sentences(returned, sentence):
    with pytest.raises(RewardError, match=sentence):
        score(Function(fn=lambda completions: returned), group(Example(prompt="?"), "a", "b"))


# ---------------------------------------------------------------------------------------------------------- learner


def test_a_learner_scores_pairs_and_stamps_its_version():
    context, groups = Context(), (group(Example(prompt="p"), "", rollout("ab", finished=False)), group(Example(prompt="q"), "abc"))
    assert score(Learner(learner="judge"), *groups, context=context) == [0, 2, 3]
    assert context.asked == [("judge", ["p", "p", "q"], ["", "ab", "abc"], [True, False, True])]
    assert [r.reward_versions for g in groups for r in g.rollouts] == [[7], [7], [7]]


@pytest.mark.parametrize(
    ("form", "at_zero", "at_two"),
    [
        ("logit", 0, 2),
        ("probability", 0.5, 1 / (1 + math.exp(-2))),
        ("log", -math.log(2), -math.log(1 + math.exp(-2))),
        ("neg_log_one_minus", math.log(2), math.log(1 + math.exp(2))),
    ],
)
def test_forms_of_the_score(form, at_zero, at_two):
    got = score(Learner(learner="judge", form=form), group(Example(prompt="p"), "", "ab"))
    assert got == pytest.approx([at_zero, at_two], abs=1e-12)


def test_clip_bounds_the_logit_before_the_form():
    # logit 20 -> 3; -log(1 - sigmoid(3)) = log(1 + e^3)
    got = score(Learner(learner="judge", form="neg_log_one_minus", clip=3.0), group(Example(prompt="p"), "x" * 20, "x"))
    assert got == pytest.approx([math.log(1 + math.exp(3)), math.log(1 + math.e)], abs=1e-12)


def test_learner_refuses_unknown_forms():
    with pytest.raises(ConfigError, match="Did you mean 'logit'"):
        Learner(learner="judge", form="logits")
    with pytest.raises(ConfigError, match="clip"):
        Learner(learner="judge", clip=0.0)
