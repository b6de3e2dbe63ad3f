"""A discriminator as a reward: its forms against functional.gan, credit for segments and tokens, length, statistics over draws."""

import json
import math

import pytest
import torch
from helpers.context import FakeContext

from advalign.advantages.gae import GAE
from advalign.errors import ConfigError
from advalign.functional import gan
from advalign.models import load
from advalign.models.inference import score_texts as scored
from advalign.rewards._scores import Scale, segment_ends
from advalign.rewards.discriminator import Discriminator
from advalign.sources._rollouts import build_rows
from advalign.sources._scoring import as_scorer, score
from advalign.types import Example, Rollout, RolloutGroup

TEXTS = ["Red is blue. Is it? no\nyes it's so green a b c d e f g :"]
ANSWERS = ["red is blue. is it? no", "yes\nno. so", "green", "it's so.  ", "a b c d e", ""]


def network(model, head="score", words="words"):
    net = load(model, head=head, tokenizer={"kind": words}, texts=TEXTS, max_length=64, dtype="float64").eval()
    for p in net.parameters():
        p.data.mul_(2)
    return net


class DiscriminatorContext(FakeContext):
    """A policy that writes words, a discriminator that reads characters, and another that reads the policy's words."""

    def __init__(self):
        super().__init__()
        self.policy = network("scratch:tiny-gpt2?n_embd=32", "policy")
        self.discriminator = network("scratch:encoder-tiny?hidden_size=32", words="characters")
        self.reader = network("scratch:tiny-gpt2?n_embd=32")

    def encoder(self, learner):
        return {"policy": self.policy}[learner].encoder

    def score(self, learner, prompts, texts, finished):
        return scored({"discriminator": self.discriminator}[learner], list(zip(prompts, texts, finished, strict=True)), 4096), 3

    def score_tokens(self, learner, groups):
        tokens = self.reader.encoder.rollouts(groups)
        found = self.reader(tokens, {"token_scores"}).token_scores.detach()
        return [row[target].tolist() for row, target in zip(found, tokens.target, strict=True)], 5


@pytest.fixture(scope="module")
def context():
    return DiscriminatorContext()


def groups(context, answers=ANSWERS, finished=True):
    encoder, found = context.policy.encoder, []
    for prompt, texts in [("a b :", answers[: len(answers) // 2]), ("c :", answers[len(answers) // 2 :])]:
        sampled = [
            Rollout(response_ids=ids, sampler_logprobs=[-0.5 - i for i in range(len(ids))], text=encoder.decode(ids), finished=finished)
            for ids in encoder.responses(texts, [finished] * len(texts))
        ]
        found.append(RolloutGroup(example=Example(prompt=prompt), prompt_ids=encoder.prompt(prompt), rollouts=sampled))
    return found


def flat(found):
    return [r for g in found for r in g.rollouts]


def scores_of(context, found, **options):
    return Discriminator(learner="discriminator", **options).start(context)(found)


# ------------------------------------------------------------------------------------------------------------- forms


@pytest.mark.parametrize(
    ("form", "formula"), [("logit", "logit"), ("neg_log_one_minus", "-log(1-D)"), ("log", "log D"), ("probability", "D")]
)
def test_forms_are_those_of_functional_gan_after_the_bound(context, form, formula):
    found = groups(context)
    raw = torch.tensor(scores_of(context, found), dtype=torch.float64)
    assert raw.std() > 0.02
    soft = 0.3 * torch.tanh(raw / 0.3)
    for options, bounded in [({}, raw), ({"clip": 0.1}, raw.clamp(-0.1, 0.1)), ({"soft_clip": 0.3}, soft)]:
        got = scores_of(context, found, form=form, **options)
        assert got == pytest.approx(gan.reward(bounded, form=formula).tolist(), abs=1e-14)


def test_airl_subtracts_the_sampler_s_logprob_of_its_text(context):
    found = groups(context)
    raw = scores_of(context, found)
    # log-probabilities -0.5, -1.5, ...: n tokens sum to -n^2 / 2
    want = [s + len(r.response_ids) ** 2 / 2 for s, r in zip(raw, flat(found), strict=True)]
    assert scores_of(context, found, form="airl") == pytest.approx(want, abs=1e-12)


# ---------------------------------------------------------------------------------------------------------- segments


@pytest.mark.parametrize(
    ("text", "segment", "pieces"),
    [
        ("One is. Two? Yes!\nNo", "sentence", ["One is.", " Two?", " Yes!", "\nNo"]),
        ('He said "no." Then 3.5 left.  ', "sentence", ['He said "no."', " Then 3.5 left.  "]),
        ("one line\n\nanother", "sentence", ["one line\n\n", "another"]),
        ("no mark", "sentence", ["no mark"]),
        ("a b c d e", 2, ["a b", " c d", " e"]),
        ("a b c d ", 2, ["a b", " c d "]),
        ("", "sentence", [""]),
        (" \n", 1, [" \n"]),
    ],
)
def test_where_segments_end(text, segment, pieces):
    ends = segment_ends(text, segment)
    assert [text[a:b] for a, b in zip([0, *ends], ends, strict=False)] == pieces


@pytest.mark.parametrize("segment", ["sentence", 1, 2])
@pytest.mark.parametrize("form", ["logit", "neg_log_one_minus"])
def test_increases_are_on_the_last_token_of_their_segment_and_sum_to_the_reward(context, segment, form):
    found = groups(context)
    whole = scores_of(context, found, form=form)
    each = scores_of(context, found, form=form, level="segment", segment=segment)
    assert [len(e) for e in each] == [len(r.response_ids) for r in flat(found)]
    assert [sum(e) for e in each] == pytest.approx(whole, abs=1e-13)
    for credit, r, prompt in zip(each, flat(found), [g.example.prompt for g in found for _ in g.rollouts], strict=True):
        before, want = 0.0, [0.0] * len(credit)
        for end in (ends := segment_ends(r.text, segment)):
            (value,), _ = context.score("discriminator", [prompt], [r.text[:end]], [end == ends[-1]])
            now = float(gan.reward(torch.tensor(value, dtype=torch.float64), form="logit" if form == "logit" else "-log(1-D)"))
            # By hand: the first token with which the text so far is as long as the segment; the end belongs to the last.
            reached = [len(context.policy.encoder.decode(r.response_ids[: t + 1])) >= end for t in range(len(credit))]
            want[len(credit) - 1 if end == ends[-1] else reached.index(True)] += now - before
            before = now
        assert credit == pytest.approx(want, abs=1e-12)
    assert max(sum(value != 0 for value in credit) for credit in each) > (1 if segment == "sentence" else 2)
    assert all(r.reward_versions[-1] == 3 for r in flat(found))


# ------------------------------------------------------------------------------------------------------------ tokens


def test_rewards_on_tokens_have_the_returns_of_their_sum_at_the_first_token(context):
    # With gamma = lam = 1 the return at a token is the sum of all rewards from it on, whatever the critic says.
    encoder, estimator = context.policy.encoder, GAE(gamma=1.0, lam=1.0, whiten=False)
    returns, first = [], []
    for each_at_its_token in (True, False):
        found = groups(context)
        reward = Discriminator(learner="reader", level="token", form="log", weight=0.5)
        scorer = reward.start(context)
        totals = [sum(e) for e in scorer(found)]
        score(found, [reward], [scorer if each_at_its_token else as_scorer(lambda _, totals=totals: totals)], "sources.s")
        rows = build_rows(found, encoder, [reward.weight], 1.0)
        values = torch.randn(rows.tokens.ids.shape, generator=torch.Generator().manual_seed(0)) * rows.tokens.target
        object.__setattr__(rows, "values", values)
        returns.append(estimator(rows, None, lambda x: x)[1])
        first = rows.tokens.target.int().argmax(1)
        assert (rows.token_rewards is not None) == each_at_its_token
    at_first = [r.gather(1, first[:, None]).squeeze(1) for r in returns]
    torch.testing.assert_close(at_first[0], at_first[1], rtol=1e-5, atol=1e-5)  # rows of rollouts are float32
    assert at_first[0].tolist() == pytest.approx([0.5 * t for t in totals], rel=1e-5)
    assert not torch.allclose(returns[0], returns[1], atol=1e-2)  # later on credit differs


# ------------------------------------------------------------------------------------------------ length and statistics


def test_a_residual_is_uncorrelated_with_log_length_and_keeps_its_mean(context):
    found = groups(context)
    raw = torch.tensor(scores_of(context, found), dtype=torch.float64)
    x = torch.tensor([math.log(1 + len(r.response_ids)) for r in flat(found)], dtype=torch.float64)
    got = torch.tensor(scores_of(context, found, length="residual"), dtype=torch.float64)

    def covariance(y):
        return float(((y - y.mean()) * (x - x.mean())).mean())

    assert abs(covariance(raw)) > 1e-3
    assert abs(covariance(got)) < 1e-16
    assert float(got.mean()) == pytest.approx(float(raw.mean()), abs=1e-15)
    # It is what the normal equations leave, up to the intercept.
    design = torch.stack([torch.ones_like(x), x], 1)
    left = raw - design @ torch.linalg.lstsq(design, raw[:, None]).solution.squeeze(1)
    torch.testing.assert_close(got - got.mean(), left, rtol=0, atol=1e-14)


def test_a_residual_passes_over_what_was_not_judged_and_over_equal_lengths():
    y, x = torch.tensor([1.0, math.nan, 3.0, 8.0]).double(), torch.tensor([0.0, 50.0, 1.0, 2.0]).double()
    # without the second: mean y 4, mean x 1, slope ((1 - 4)(-1) + (8 - 4) 1) / 2 = 3.5
    got = Scale.without_trend(y, x).apply(y, x)
    assert got[[0, 2, 3]].tolist() == [4.5, 3.0, 4.5]
    assert bool(got[1].isnan())
    flat = (torch.tensor([1.0, 2.0]).double(), torch.ones(2).double())
    assert Scale.without_trend(*flat).apply(*flat).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("level", ["token", "segment"])
@pytest.mark.parametrize("options", [{"length": "residual"}, {"normalize": "batch"}, {"length": "residual", "normalize": "batch"}])
def test_what_is_done_to_responses_is_done_to_the_sums_of_their_tokens(context, level, options):
    plain, shaped = (
        [torch.tensor(e, dtype=torch.float64) for e in scores_of(context, groups(context), level=level, segment=1, **o)]
        for o in ({}, options)
    )
    totals, got = (torch.stack([e.sum() for e in each]) for each in (plain, shaped))
    lengths = torch.tensor([float(len(e)) for e in plain], dtype=torch.float64)
    without_trend = Scale.without_trend(totals, lengths.log1p()).apply(totals, lengths.log1p())
    want = without_trend if "length" in options else totals
    if "normalize" in options:
        want = (want - want.mean()) / want.std()
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    scale = 1 / float((without_trend if "length" in options else totals).std()) if "normalize" in options else 1
    for before, after in zip(plain, shaped, strict=True):
        torch.testing.assert_close(after[:-1], scale * before[:-1], rtol=0, atol=1e-12)


def test_running_statistics_are_those_of_everything_seen_and_are_saved(context):
    first, second = groups(context, ANSWERS[:4]), groups(context, ANSWERS[2:])
    raw = [torch.tensor(scores_of(context, g), dtype=torch.float64) for g in (first, second)]
    scorer = Discriminator(learner="discriminator", normalize="running").start(context)
    assert scorer(first) == pytest.approx(((raw[0] - raw[0].mean()) / raw[0].std()).tolist(), abs=1e-12)
    state = json.loads(json.dumps(scorer.state_dict()))
    both = torch.cat(raw)
    want = ((raw[1] - both.mean()) / both.std()).tolist()
    assert scorer(second) == pytest.approx(want, abs=1e-12)
    resumed = Discriminator(learner="discriminator", normalize="running").start(context)
    resumed.load_state_dict(state)
    assert resumed(second) == scorer_again(context, first, second)


def scorer_again(context, first, second):
    scorer = Discriminator(learner="discriminator", normalize="running").start(context)
    scorer(first)
    return scorer(second)


def test_equal_scores_are_not_blown_up(context):
    found = groups(context, ["green"] * 4)
    for found_group in found:
        object.__setattr__(found_group, "example", Example(prompt="c :"))
    assert scores_of(context, found, normalize="batch") == pytest.approx([0.0] * 4, abs=1e-9)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"level": "tokens"}, "Did you mean 'token'"),
        ({"normalize": "group"}, "no normalize 'group'"),
        ({"length": "log"}, "no length 'log'"),
        ({"segment": 0}, "one of sentence or a whole number of at least 1"),
        ({"segment": "clause"}, "one of sentence or a whole number of at least 1"),
        ({"soft_clip": 0.0}, "soft_clip: 0 given; a number above 0"),
        ({"clip": 1.0, "soft_clip": 1.0}, "use one of them"),
        ({"form": "airl", "level": "token"}, "'airl' weighs whole responses"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, sentence):
    with pytest.raises(ConfigError, match=sentence):
        Discriminator(learner="discriminator", **wrong)
