"""Diversity by hand and in closed form, Self-BLEU against a slow loop, and a quality-diversity curve whose ends are known."""

import itertools
import math
from collections import Counter

import pytest
import torch
from helpers.networks import network
from helpers.runs import DATA, SHORT, game, imitation

from advalign import Evaluation, Sampling, cli, data
from advalign.errors import ConfigError
from advalign.evaluation import Report, Suite
from advalign.evaluation.reports.quality_diversity import add_curves, parse_temperatures, suite_report
from advalign.interfaces import RolloutEngine
from advalign.metrics import diversity
from advalign.types import Example, Rollout, RolloutGroup

nltk = pytest.mark.skipif(not diversity.has_nltk(), reason="nltk is not installed")


def group(*texts, example=None):
    rollouts = [Rollout(response_ids=[1] * len(t.split()), sampler_logprobs=[], text=t, finished=True) for t in texts]
    return RolloutGroup(example=example or Example(prompt="?"), prompt_ids=[1], rollouts=rollouts)


# ------------------------------------------------------------------------------------------------------- self-BLEU


def bleu(words, references, order):
    """BLEU by its definition: clipped n-gram precisions, 0.1 for no hit at all, geometric mean, brevity against the nearest length.
    0 without a common word."""
    total = 0.0
    for n in range(1, order + 1):
        own = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        most = Counter()
        for reference in references:
            most |= Counter(tuple(reference[i : i + n]) for i in range(len(reference) - n + 1))
        hits = sum(min(c, most[g]) for g, c in own.items())
        if n == 1 and not hits:
            return 0.0
        total += math.log((hits or 0.1) / sum(own.values())) / order
    nearest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
    return math.exp(total) * (1.0 if len(words) > nearest else math.exp(1 - nearest / len(words)))


@nltk
def test_self_bleu_by_hand():
    # "a b c" against "a b d", up to pairs: words 2 of 3, pairs 1 of 2, equal lengths: sqrt(2/3 * 1/2); and the same the other way round.
    assert diversity.self_bleu([["a b c", "a b d"]], order=2) == pytest.approx((2 / 3 * 1 / 2) ** 0.5)
    # A word in common and no pair: words 1 of 3, and for the pairs 0.1 of 2. Nothing in common: 0.
    assert diversity.self_bleu([["a b c", "d a e"]], order=2) == pytest.approx((1 / 3 * 0.1 / 2) ** 0.5)
    assert diversity.self_bleu([["a b c", "d e f"]], order=2) == 0
    # All the same, also where texts are shorter than the order: 1. Two groups: the mean over texts.
    assert diversity.self_bleu([["a b c d e"] * 3, ["a b"] * 3, ["a"] * 3]) == pytest.approx(1)
    assert diversity.self_bleu([["a"] * 2, ["a", "b"]], order=1) == pytest.approx(2 / 4)


@nltk
def test_self_bleu_against_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    groups = []
    for _ in range(3):
        lengths = torch.randint(4, 9, (5,), generator=generator).tolist()
        groups.append([" ".join("abc"[i] for i in torch.randint(0, 3, (n,), generator=generator).tolist()) for n in lengths])
    for order in (1, 2, 3, 4):
        slow = []
        for texts in groups:
            words = [t.split() for t in texts]
            slow += [bleu(w, words[:i] + words[i + 1 :], order) for i, w in enumerate(words)]
        assert diversity.self_bleu(groups, order=order) == pytest.approx(sum(slow) / len(slow), rel=1e-12)


@nltk
def test_self_bleu_is_of_one_prompt_and_of_more_than_one_text():
    # The same text for two prompts is no collapse; one response per prompt says nothing.
    assert diversity.self_bleu([["a b", "c d"], ["a b", "c d"]], order=1) == 0
    assert math.isnan(diversity.self_bleu([["a b"], ["a b"]]))
    assert math.isnan(diversity.self_bleu([["", ""]]))


def test_without_nltk_it_is_refused_before_a_run(monkeypatch):
    monkeypatch.setattr(diversity, "has_nltk", lambda: False)
    with pytest.raises(ConfigError, match=r"evaluations\.held\.self_bleu: 'nltk' is not installed; install advalign\[diversity\]"):
        game(evaluations={"held": Evaluation(data=DATA, self_bleu=2)})
    game(evaluations={"held": Evaluation(data=DATA)})


# -------------------------------------------------------------------------------------------------------- coverage


def test_coverage_by_hand():
    # Pairs of the references: (a b) (b c) (c d), the first twice. Said: (b c) and (c a).
    assert diversity.coverage(["b c a"], ["a b c", "a b", "c d"]) == 1 / 3
    # One word is a gram of its own, and is not found inside of a longer text: "Paris" is said, "Rome" is not.
    assert diversity.coverage(["Paris", "in Rome"], ["Paris", "Rome", "Oslo"]) == 1 / 3
    # With n beyond all lengths: whole texts.
    assert diversity.coverage(["a b c", "a b"], ["a b c", "a c"], n=9) == 1 / 2


def test_coverage_of_a_collapsed_policy_is_what_its_text_covers_however_often_it_is_said():
    references = [" ".join(p) for p in itertools.permutations("abc")]  # all six ordered pairs of different letters
    assert diversity.coverage(["a b c"] * 50, references) == 2 / 6
    assert diversity.coverage(references, references) == 1


def test_numbers_of_groups_by_hand():
    # Every prompt has two different texts, but they are the same two for both prompts.
    groups = [group("a b", "b a"), group("a b", "b a")]
    logs = diversity.group_diversity(groups, references=["a b", "c"])
    assert logs == {"unique": 1, "unique/overall": 1 / 2, "distinct_1": 2 / 8, "distinct_2": 2 / 4, "coverage": 1 / 2}
    # What has no value is left out.
    assert set(diversity.group_diversity([group("a")])) == {"unique", "unique/overall", "distinct_1"}


@nltk
def test_an_evaluation_logs_them():
    evaluation = Evaluation(data=DATA, number=3, samples=4, sampling=SHORT, self_bleu=3)
    trainer = imitation(evaluations={"held": evaluation})
    logs = trainer.evaluate()
    examples = data.examples(DATA, split="test", limit=3, seed=0)
    groups = trainer.rollout_engine.generate(trainer.model, examples, 4, SHORT, torch.Generator().manual_seed(0))
    shown = data.demonstrations(DATA, split="test", limit=3, seed=0)
    expected = diversity.group_diversity(groups, references=[e.meta["response"] for e in shown], order=3)
    assert {"unique", "unique/overall", "distinct_1", "distinct_2", "coverage", "self_bleu"} == set(expected)
    assert {name: logs[f"held/{name}"] for name in expected} == expected


# ------------------------------------------------------------------------------------- quality against diversity


def one_of(*weighted):
    """An engine whose policy gives text i with probability ∝ exp(logit_i / temperature)."""

    class Engine(RolloutEngine):
        def extend(self, network, groups, n, sampling, generator):
            raise NotImplementedError

        def sync(self, network, version):
            pass

        def generate(self, network, examples, n, sampling, generator):
            logits = torch.tensor([logit for _, logit in weighted], dtype=torch.float64)
            p = (logits / sampling.temperature).softmax(0) if sampling.temperature else (logits == logits.max()).double()
            rows = torch.multinomial(p, len(examples) * n, replacement=True, generator=generator).view(len(examples), n)
            return [group(*[weighted[i][0] for i in row], example=e) for e, row in zip(examples, rows.tolist(), strict=True)]

    return Engine()


def test_a_curve_runs_from_the_mode_to_the_uniform():
    # "right" has logit 2, nine wrong texts 0. Cold: always right, all the same. Hot: right with 1/10.
    examples = [Example(prompt=str(i), answer="right", verify=lambda text: float(text == "right")) for i in range(40)]
    engine = one_of(("right", 2.0), *((f"wrong {i}", 0.0) for i in range(9)))
    rows = diversity.quality_diversity(network(), examples, [0.0, 0.5, 1.0, 1000.0], 8, engine=engine)
    assert [r["temperature"] for r in rows] == [0.0, 0.5, 1.0, 1000.0]
    assert (rows[0]["quality"], rows[0]["unique"]) == (1.0, 1 / 8)
    for row in rows[1:]:
        p = math.exp(2 / row["temperature"]) / (math.exp(2 / row["temperature"]) + 9)
        w = (1 - p) / 9
        # 320 draws: four standard errors. Distinct of 8: sum over texts of 1 - (1 - p_i)^8.
        assert row["quality"] == pytest.approx(p, abs=4 * (p * (1 - p) / 320) ** 0.5)
        assert row["unique"] == pytest.approx((1 - (1 - p) ** 8 + 9 * (1 - (1 - w) ** 8)) / 8, abs=0.08)
    assert rows[0]["unique"] < rows[1]["unique"] < rows[2]["unique"] < rows[3]["unique"]


def test_a_judge_of_its_own_and_abstentions():
    engine = one_of(("long text", 0.0), ("short", 0.0))

    def judge(groups):
        return [math.nan if r.text == "short" else 3.0 for g in groups for r in g.rollouts]

    (row,) = diversity.quality_diversity(network(), [Example(prompt="?")], [1.0], 16, engine=engine, quality=judge)
    assert row["quality"] == 3.0
    # Nobody can judge: no quality, and the row says so.
    (row,) = diversity.quality_diversity(network(), [Example(prompt="?")], [1.0], 4, engine=engine)
    assert math.isnan(row["quality"])


def test_a_real_policy_is_more_diverse_when_hot_and_the_same_again_with_the_same_seed():
    model = imitation().model
    examples = data.examples(DATA, split="test", limit=4, seed=0)
    options = {"samples": 4, "sampling": Sampling(max_new_tokens=4)}
    rows = diversity.quality_diversity(model, examples, [0.0, 1.5], **options)
    assert rows == diversity.quality_diversity(model, examples, [0.0, 1.5], **options)
    assert rows[0]["unique"] == 1 / 4
    assert rows[1]["unique"] == 1
    assert rows[0]["length"] <= 4


def test_a_plot_and_its_table():
    curves = {
        "a": [{"temperature": 0.5, "quality": 0.9, "unique": 0.2}, {"temperature": 1.0, "quality": 0.5, "unique": 0.8}],
        "b": [{"temperature": 0.5, "quality": math.nan, "unique": 0.2}],
    }
    report = add_curves(Report("t"), curves)
    assert report.html().count("<svg") == 1
    text = report.markdown()
    assert "| a | 0.500 | 0.900 | 0.200 |" in text
    assert "| b | 0.500 | – | 0.200 |" in text


def test_the_command_prints_the_curve_and_writes_a_page(tmp_path, capsys, monkeypatch):
    imitation().model.save_pretrained(tmp_path / "policy")
    suite = tmp_path / "suite.yaml"
    forced = "attacks: {force: {kind: prefill, tokens: 1, text: a}}"
    suite.write_text(f"{{data: {{task: constraints, number: 4}}, {forced}, samples: 3, sampling: {{max_new_tokens: 3}}}}")
    words = ["advalign", "eval", str(tmp_path / "policy"), "--suite", str(suite), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(cli.sys, "argv", [*words, "--temperatures", "0,1.5"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| policy")]
    assert [line.split("|")[2].strip() for line in lines[-2:]] == ["0", "1.500"]
    assert "<svg" in (tmp_path / "out" / "quality_diversity.html").read_text()


def test_temperatures_are_numbers_and_a_scorer_has_none():
    assert parse_temperatures("0.3, 1") == [0.3, 1.0]
    with pytest.raises(ConfigError, match=r"temperatures: 'a,1' is not a list of numbers"):
        parse_temperatures("a,1")
    with pytest.raises(ConfigError, match="a score samples nothing"):
        suite_report(Suite(data=[], attacks={}), network("score"), [1.0])


@pytest.mark.parametrize(("temperatures", "samples"), [([], 4), ([-1.0], 4), ([1.0], 1)])
def test_refused(temperatures, samples):
    with pytest.raises(ConfigError, match="give at least 2, and none below 0"):
        diversity.quality_diversity(network(), [], temperatures, samples)
