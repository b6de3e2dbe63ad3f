"""Every reward: one finite score per rollout in order, and each formula against numbers worked by hand."""

import importlib.util
import json
import math
import random
import re
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import yaml
from helpers.context import FakeContext

from advalign import config, plugins
from advalign.advantages import Group
from advalign.errors import ConfigError, RewardError
from advalign.interfaces import Reward
from advalign.models import Encoder, load
from advalign.models.scratch import train_tokenizer
from advalign.rewards import Discriminator, ExactAnswer, Format, Function, Length, Math, _symbolic
from advalign.rewards.exact_answer import final_answer
from advalign.sources import Prompts
from advalign.types import Example, Rollout, RolloutGroup

symbolic = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="the optional package math-verify is not installed")


class LengthContext(FakeContext):
    """Scores a text by its length, as version 7; records what it was asked."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def score(self, learner, prompts, texts, finished):
        self.asked.append((learner, list(prompts), list(texts), list(finished)))
        return [float(len(text)) for text in texts], 7


def rollout(text, length=1, finished=True):
    return Rollout(response_ids=list(range(length)), sampler_logprobs=[0.0] * length, text=text, finished=finished)


def group(example, *texts):
    return RolloutGroup(example=example, prompt_ids=[1], rollouts=[text if isinstance(text, Rollout) else rollout(text) for text in texts])


def score(reward, *groups, context=None):
    return list(reward.start(context or LengthContext())(groups))


def count_letters(prompts, completions):
    return [len(text) for text in completions]


def scorer():
    """A scorer that reads characters, so that it can tell the texts below apart."""
    texts = ["pqrs 0123456789 <think></think><answer></answer> five"]
    return load("scratch:tiny-gpt2?n_embd=32", head="score", tokenizer={"kind": "characters"}, texts=texts, max_length=64, dtype="float64")


CASES = {
    "exact_answer": {},
    "format": {},
    "instructions": {},
    "length": {},
    "math": {},
    "function": {"fn": count_letters},
    "discriminator": {"learner": "discriminator"},
    "model": lambda: {"model": scorer()},
}
BRIEF = {"instruction_id_list": ["length_constraints:number_words"], "kwargs": [{"relation": "less than", "num_words": 3}]}
GROUPS = (
    group(Example(prompt="p", answer="1", meta=BRIEF), "1", "2"),
    group(Example(prompt="q", answer="2", meta=BRIEF), rollout("2", 20480)),
    group(Example(prompt="r", answer="3", meta=BRIEF)),
    group(Example(prompt="s", answer="4", meta=BRIEF), "4", "<think>a</think><answer>4</answer>", "five"),
)


@pytest.mark.parametrize("cls", plugins.all("rewards"))
def test_one_score_per_rollout_in_order_and_the_same_alone_as_in_company(cls):
    if cls is Math:
        pytest.importorskip("math_verify", reason="the optional package math-verify is not installed")
    case = CASES[plugins.kind_of(cls)]
    reward = cls(**(case() if callable(case) else case))
    together = score(reward, *GROUPS)
    alone = [s for g in GROUPS for r in g.rollouts for s in score(reward, group(g.example, r))]
    assert together == pytest.approx(alone, abs=1e-12)
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
    example = Example(prompt="?", answer="x^2 - 1")
    assert score(ExactAnswer(engine="numeric"), group(example, "\\boxed{(x-1)(x+1)}")) == [0]
    monkeypatch.setattr(_symbolic, "installed", lambda: False)
    assert score(ExactAnswer(engine="auto"), group(example, "\\boxed{(x-1)(x+1)}", "\\boxed{x^2-1}")) == [0, 1]
    with pytest.raises(ConfigError, match="not installed"):
        ExactAnswer(engine="math_verify").start(LengthContext())
    monkeypatch.undo()
    pytest.importorskip("math_verify", reason="the optional package math-verify is not installed")
    assert score(ExactAnswer(engine="math_verify"), group(example, "\\boxed{(x-1)(x+1)}", "\\boxed{(x-1)(x+2)}", "none")) == [1, 0, 0]
    # Two plain numbers are decided by the rule; a percentage is not plain: 50 % may be a half.
    half = Example(prompt="?", answer="0.5")
    assert score(ExactAnswer(engine="math_verify"), group(half, "\\boxed{50\\%}", "50", "1/2")) == [1, 0, 1]
    assert score(ExactAnswer(engine="numeric"), group(half, "\\boxed{50\\%}")) == [0]


def test_an_unknown_engine_is_refused():
    with pytest.raises(ConfigError, match="Did you mean 'numeric'"):
        ExactAnswer(engine="numerical")


# ------------------------------------------------------------------------------------------------------------- math


@symbolic
@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        ("x^2 - 1", "\\boxed{(x-1)(x+1)}", 1),
        ("x^2 - 1", "\\boxed{(x-1)(x+2)}", 0),
        ("\\frac{\\sqrt{3}}{3}", "so we get $\\frac{1}{\\sqrt{3}}$.", 1),  # sqrt(3) / 3 = 1 / sqrt(3); the last formula counts
        ("\\frac{\\sqrt{3}}{3}", "first $\\frac{1}{\\sqrt{3}}$, then \\(\\sqrt{3}\\)", 0),
        ("1", "\\[\\sin(x)^2 + \\cos(x)^2\\]", 1),
        ("2^{10}", "it is 1024", 1),
        ("\\{1, 2\\}", "\\boxed{\\{2, 1\\}}", 1),  # a set has no order
        ("(1, 2)", "\\boxed{(2, 1)}", 0),  # a pair has one
        ("5", "\\boxed{x = 5}", 1),
        ("0.5", "\\boxed{50\\%}", 1),
        ("15", "It costs $5, so 3 * 5 = $15", 1),  # dollars, not formulas
        ("15", "It costs $15, not $5", 0),
        ("10", "2 * 5 = 10. #### 10", 1),
        ("48 + 24 = 72\n#### 72", "\\boxed{72}", 1),
        ("72", "no answer", 0),
        ("\\infty", "\\boxed{\\infty}", 1),
        ("1", "\\boxed{\\frac{1}{0}}", 0),
        ("1", "\\boxed{\\frac{", 0),
    ],
)
def test_equal_as_mathematics(reference, text, expected):
    assert score(Math(), group(Example(prompt="?", answer=reference), text)) == [expected]


@symbolic
@pytest.mark.parametrize("reference", [None, "", "\\frac{", "#### "])
def test_mathematics_abstains_where_the_reference_is_no_expression(reference):
    # Whatever the response says: neither is a right one counted nor a wrong one.
    assert all(map(math.isnan, score(Math(), group(Example(prompt="?", answer=reference), "1", "none", "\\frac{"))))


@symbolic
def test_an_expression_without_end_is_wrong_in_bounded_time_and_the_next_one_is_judged():
    # The tower is one product of integers inside one instruction: no handler of Python would ever run.
    tower = "9^{9^{9^{9}}}"
    reward = Math(seconds=0.5)
    assert score(reward, group(Example(prompt="?", answer="1"), f"\\boxed{{{tower}}}", "\\boxed{\\cos(0)}")) == [0, 1]
    # Nor is anything ever shown to be equal to such a reference.
    assert score(reward, group(Example(prompt="?", answer=tower), "\\boxed{\\sqrt{4}}")) == [0]


@symbolic
def test_mathematics_from_another_thread_and_from_several():
    found = {}

    def ask(number):
        found[number] = score(Math(), group(Example(prompt="?", answer=str(number)), f"\\boxed{{\\sqrt{{{number**2}}}}}", "\\boxed{\\pi}"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [1, 0] for number in range(2, 6)}


@symbolic
def test_text_is_never_run(tmp_path):
    path = tmp_path / "written"
    call = f"__import__('pathlib').Path('{path}').touch()"
    texts = (call, f"\\boxed{{{call}}}", f"${call}$", f"the answer is {call}")
    assert score(Math(), group(Example(prompt="?", answer="1"), *texts)) == [0, 0, 0, 0]
    assert score(ExactAnswer(engine="math_verify"), group(Example(prompt="?", answer=call), "1", "\\boxed{2}")) == [0, 0]
    assert not path.exists()


def test_mathematics_is_refused_where_its_package_is_not_installed(monkeypatch):
    monkeypatch.setattr(_symbolic, "installed", lambda: False)
    with pytest.raises(ConfigError, match=r"rewards\.math: the package math-verify is not installed; install advalign\[math\]"):
        Math().start(LengthContext())
    with pytest.raises(ConfigError, match=r"rewards\.math\.seconds: 0"):
        Math(seconds=0)


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
        ("<think>a <answer>3</answer></think><answer>4</answer>", 0),  # two answers, one of them inside the thoughts
        ("<think>a</think><answer><think>b</think></answer>", 0),
        ("<think>a</think></think><answer>4</answer>", 0),
        ("<think>a</think> so <answer>4</answer>", 0),
        ("<THINK>a</THINK><answer>4</answer>", 0),
        ("<think>1 < 2 and 3 > 2</think>\n\n<answer>a <b>bold</b> 4</answer>", 1),
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
            Function(fn=path).start(LengthContext())
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


# ---------------------------------------------------------------------------------------------------- discriminator


def test_a_discriminator_scores_pairs_and_stores_its_version():
    context, groups = LengthContext(), (group(Example(prompt="p"), "", rollout("ab", finished=False)), group(Example(prompt="q"), "abc"))
    assert score(Discriminator(learner="discriminator"), *groups, context=context) == [0, 2, 3]
    assert context.asked == [("discriminator", ["p", "p", "q"], ["", "ab", "abc"], [True, False, True])]
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
    got = score(Discriminator(learner="discriminator", form=form), group(Example(prompt="p"), "", "ab"))
    assert got == pytest.approx([at_zero, at_two], abs=1e-12)


def test_clip_bounds_the_logit_before_the_form():
    # logit 20 -> 3; -log(1 - sigmoid(3)) = log(1 + e^3)
    got = score(Discriminator(learner="discriminator", form="neg_log_one_minus", clip=3.0), group(Example(prompt="p"), "x" * 20, "x"))
    assert got == pytest.approx([math.log(1 + math.exp(3)), math.log(1 + math.e)], abs=1e-12)


def test_a_discriminator_refuses_unknown_forms():
    with pytest.raises(ConfigError, match="Did you mean 'logit'"):
        Discriminator(learner="discriminator", form="logits")
    with pytest.raises(ConfigError, match="clip"):
        Discriminator(learner="discriminator", clip=0.0)


# ----------------------------------------------------------------------------- several rewards, and what they must not do


class Run(FakeContext):
    """A run whose policy answers every prompt with the same prepared responses."""

    def __init__(self, *responses):
        super().__init__()
        self.responses = responses

    def random(self, *key):
        return random.Random(str(key))

    def encoder(self, learner):
        return Encoder(train_tokenizer("words", ["p q"]))

    def generate(self, learner, examples, n, sampling, key):
        return [group(example, *(rollout(text, length) for text, length in self.responses)) for example in examples]


@dataclass(frozen=True, kw_only=True)
class Fixed(Reward):
    """The same answer whatever is asked: scores, or an exception."""

    answer: object

    def start(self, context):
        def score(groups):
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

        return score


def draw(tmp_path, rewards, *responses):
    """One draw of one prompt (1 + 1 =, answer 2), and what it logged."""
    path = tmp_path / "sums.jsonl"
    path.write_text(json.dumps({"question": "1 + 1 =", "answer": "2"}) + "\n")
    source = Prompts(data=str(path), rewards=rewards, advantage=Group(), group_size=len(responses), batch_size=1)
    runtime = source.start(Run(*responses), "sums")
    return runtime.draw(0, 0), runtime.logs


def test_several_rewards_are_summed_by_weight_and_logged_one_by_one(tmp_path):
    rewards = [ExactAnswer(engine="numeric"), Format(weight=0.2), Length(max_length=10, buffer=4, weight=0.5)]
    (found,), logs = draw(
        tmp_path,
        rewards,
        ("<think>1 + 1</think><answer>2</answer>", 6),  # right, formed, not too long: 1 + 0.2 + 0 = 1.2
        ("2", 8),  # right, not formed, half of the price: 1 + 0 - 0.5 * 1/2 = 0.75
        ("<think></think><answer>3</answer>", 12),  # wrong, formed, full price: 0 + 0.2 - 0.5 = -0.3
    )
    assert [r.rewards for r in found.rollouts] == [[1, 1, 0], [1, 0, -0.5], [0, 1, -1]]
    assert logs["rewards/exact_answer/mean"] == pytest.approx(2 / 3)
    assert logs["rewards/format/mean"] == pytest.approx(2 / 3)
    assert logs["rewards/length/mean"] == pytest.approx(-0.5)
    assert logs["reward"] == pytest.approx((1.2 + 0.75 - 0.3) / 3)
    assert logs["frac_reward_zero_std"] == 0


def test_a_reward_that_abstains_is_left_out_of_the_sum_and_a_row_without_any_score_leaves(tmp_path):
    # Sums over what is scored, as TRL's nansum: 1 + 4, 5 alone, 3 + 6; "d" has no score.
    rewards = [Fixed(answer=[1.0, math.nan, 3.0, math.nan]), Fixed(answer=[4.0, 5.0, 6.0, math.nan])]
    (found,), logs = draw(tmp_path, rewards, ("a", 1), ("b", 1), ("c", 1), ("d", 1))
    assert [r.text for r in found.rollouts] == ["a", "b", "c"]
    assert logs["abstained"] == 1
    assert logs["reward"] == pytest.approx((5 + 5 + 9) / 3)  # of the rows that stay


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ([1.0], r"gave 1 scores for 2 responses"),
        ([1.0, 2.0, 3.0], r"gave 3 scores for 2 responses"),
        ([1.0, math.inf], r"gave inf for 'b'"),
        ([-math.inf, 1.0], r"gave -inf for 'a'"),
        ([math.nan, math.nan], r"abstained on every response of step 0"),
    ],
)
def test_a_source_refuses_scores_that_mean_nothing(tmp_path, answer, sentence):
    with pytest.raises(RewardError, match=rf"^sources\.sums: .*{sentence}") as caught:
        draw(tmp_path, [Fixed(answer=answer)], ("a", 1), ("b", 1))
    assert "\n" not in str(caught.value)


def test_a_reward_that_throws_is_never_a_score(tmp_path):
    with pytest.raises(ZeroDivisionError):
        draw(tmp_path, [Fixed(answer=ZeroDivisionError("a quotient"))], ("a", 1))


def test_the_rewards_shown_in_the_documentation_build(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "rewards.py").write_text("def brevity(completions, **columns):\n    return [-len(c) for c in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    page = (Path(plugins.__file__).parents[1] / "docs" / "rewards.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"(?:^    .*\n)+", page, re.MULTILINE) if block.startswith("    rewards:")]
    source = {"kind": "prompts", "data": "task:arithmetic", "advantage": "group"}
    built = [r for block in blocks for r in config.sections({"sources": {"s": source | block}})["sources"]["s"].rewards]
    assert {plugins.kind_of(type(r)) for r in built} >= {"exact_answer", "math", "format", "length", "discriminator", "function"}
