"""Two runs side by side: the paired numbers, by hand and against scipy; and results in the files of other tools."""

import json
import math
from dataclasses import replace

import pytest
import scipy.stats
from helpers.attackers import Say

from advalign import judges
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.reports import compare, export
from advalign.targets import AnsweringGenerator
from advalign.types import AttackResult, Budget, Example


def run(**statuses):
    """{attack: a letter per example}: f(ailed), s(ucceeded), w(rong before), u(ndetermined), e(rror)."""
    names = {"e": "error", "f": "failed", "s": "succeeded", "w": "skipped", "u": "undetermined"}
    return [AttackResult(example=str(i), attack=a, status=names[c]) for a, letters in statuses.items() for i, c in enumerate(letters)]


def test_rows_by_hand():
    """First: a ffsssw, b ffffsw. Second: a fffffs, b sfffuf.

    a: 2/6 against 5/6; both right 2, only second 3, only first 0. b: example 4 is undetermined in the second, so 5 are paired: 4/5
    against 4/5, one each way. Worst case: first ff then broken (2/6); second: 0 broken by b, 1-3 right, 4 known for a alone and right
    there, so left out, 5 broken by a: of the five paired ones 2/5 against 3/5.
    """
    comparison = compare.results(run(a="ffsssw", b="ffffsw"), run(a="fffffs", b="sfffuf"))
    a, b, worst, clean = (comparison.row(name) for name in ("a", "b", "worst case", "clean"))
    assert (a["first"], a["second"], a["n"]) == (pytest.approx(2 / 6), pytest.approx(5 / 6), 6)
    assert (a["only first"], a["only second"]) == (0, 3)
    assert a["p"] == pytest.approx(scipy.stats.binomtest(0, 3).pvalue)
    assert (b["n"], b["only first"], b["only second"], b["p"]) == (5, 1, 1, 1.0)
    assert (worst["n"], worst["first"], worst["second"]) == (5, pytest.approx(2 / 5), pytest.approx(3 / 5))
    assert (clean["first"], clean["second"]) == (pytest.approx(5 / 6), 1.0)
    assert a["low"] <= a["difference"] <= a["high"]


def test_the_worst_case_is_known_where_every_attack_was_judged_or_one_broke():
    """First: 0 right under a, b crashed; 1 broken by a; 2 and 3 right under both. Second: 0 and 2 right under a, b crashed; 1 right; 3
    broken by a while b crashed. Known of both: 1 (0 against 1) and 3 (1 against 0)."""
    comparison = compare.results(run(a="fsff", b="efff"), run(a="fffs", b="efee"))
    worst = comparison.row("worst case")
    assert (worst["n"], worst["left out"], worst["first"], worst["second"]) == (2, 2, 0.5, 0.5)
    assert (worst["only first"], worst["only second"]) == (1, 1)
    assert comparison.row("b")["left out"] == 3
    assert "left out" in comparison.markdown()


@pytest.mark.parametrize("letter", ["e", "u"])
def test_what_was_never_established_is_in_no_row(letter):
    """Eight of ten crashed or could not be judged; the other two: one withstood, one broken. Not 9 of 10, but 1 of 2."""
    worst = compare.results(run(a="fs" + 8 * letter), run(a="ff" + 8 * "f")).row("worst case")
    assert (worst["n"], worst["left out"], worst["first"], worst["second"]) == (2, 8, 0.5, 1.0)


def test_an_attack_without_a_result_for_an_example_was_not_withstood():
    """Of example 1 the second run has no line for b."""
    second = [r for r in run(a="ff", b="ff") if (r.attack, r.example) != ("b", "1")]
    assert compare.results(run(a="ff", b="ff"), second).row("worst case")["n"] == 1


def test_a_model_equals_itself_and_the_interval_is_a_point():
    first = run(a="fsfsfsfw")
    row = compare.results(first, first).row("a")
    assert (row["difference"], row["low"], row["high"], row["p"]) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.slow
def test_the_interval_of_the_difference_covers():
    """Second model rescues a random 15 % and loses 5 % of the examples: the true difference of 0.10 is inside 95 % intervals."""
    import torch

    hits, trials = 0, 200
    generator = torch.Generator().manual_seed(0)
    for _ in range(trials):
        first = torch.rand(150, generator=generator) < 0.5
        change = torch.rand(150, generator=generator)
        second = torch.where(first, change >= 0.1, change < 0.3)
        letters = ["".join("f" if x else "s" for x in side.tolist()) for side in (first, second)]
        row = compare.results(run(a=letters[0]), run(a=letters[1])).row("a")
        hits += row["low"] <= 0.1 <= row["high"]
    assert hits / trials >= 0.9


def test_folders_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no results\.jsonl"):
        compare.folders(tmp_path, tmp_path)
    with pytest.raises(ConfigError, match="no attack in common; first has a, second has b"):
        compare.results(run(a="f"), run(b="f"))


def result_of(tmp_path):
    def answer(prompts):
        return ["secret" if "!" in p and p[4] in "13" else f"ok {p}" for p in prompts]

    data = [Example(prompt=f"say {i}", id=str(i)) for i in range(4)]
    suite = Suite(data=data, attacks={"bang": Say(texts=("{}!",))}, examples=4, judge=judges.Rule(must_not=("secret",)))
    return suite.run(AnsweringGenerator(answer, name="fn"), tmp_path / "run")


def test_garak_lines_count_what_the_results_count(tmp_path):
    lines = [json.loads(line) for line in export.write(result_of(tmp_path), "garak", tmp_path / "g.jsonl").read_text().splitlines()]
    kinds = [line["entry_type"] for line in lines]
    assert kinds == ["start_run setup", "init", *["attempt"] * 4, "eval", "completion"]
    hits = [line["detector_results"]["advalign.Judge"] for line in lines if line["entry_type"] == "attempt"]
    assert hits == [[0.0], [1.0], [0.0], [1.0]]
    total = lines[-2]
    assert (total["passed"], total["fails"], total["nones"], total["total_evaluated"]) == (2, 2, 0, 4)
    assert lines[3]["prompt"]["turns"][0]["content"]["text"] == "say 1!"
    assert len({line["uuid"] for line in lines if line["entry_type"] == "attempt"}) == 4


def test_inspect_lines_are_samples(tmp_path):
    samples = [json.loads(line) for line in export.write(result_of(tmp_path), "inspect", tmp_path / "i.jsonl").read_text().splitlines()]
    assert [s["scores"]["robust"]["value"] for s in samples] == ["C", "I", "C", "I"]
    assert [s["output"]["completion"] for s in samples] == ["ok say 0!", "secret", "ok say 2!", "secret"]
    assert {(s["id"], s["epoch"]) for s in samples} == {(str(i), 1) for i in range(4)}
    with pytest.raises(ConfigError, match="Did you mean 'garak'"):
        export.write(None, "garrak", tmp_path / "x")


def folder_of(path, answer=lambda prompts: [f"ok {p}" for p in prompts], texts=("{}!",), words="say", number=4, **more):
    data = [Example(prompt=f"{words} {i}", id=str(i)) for i in range(number)]
    arguments = {"attacks": {"bang": Say(texts=texts)}, "examples": 4, "judge": judges.Rule(must_not=("secret",)), **more}
    Suite(data=data, **arguments).run(AnsweringGenerator(answer, name=path.name), path)
    return path


def test_folders_of_one_suite_on_two_models_are_compared_and_those_of_others_are_refused(tmp_path):
    """Another field of an attack, budget, judge, seed or text of an example: named, and nothing is compared."""
    plain = folder_of(tmp_path / "plain")
    broken = folder_of(tmp_path / "broken", lambda prompts: ["secret" if p.endswith("3!") else f"ok {p}" for p in prompts])
    assert compare.folders(plain, broken).row("bang")["difference"] == -0.25
    others = {
        "attacks": ({"texts": ("{}?",)}, r"^compare: suite\.attacks\.bang\.texts is \['\{\}!'\] for plain and \['\{\}\?'\] for attacks"),
        "budget": ({"budget": Budget(queries=50)}, r"^compare: suite\.budget is .* for plain and Budget\(edits=None, queries=50"),
        "judge": ({"judge": judges.Rule(must_not=("x",))}, r"^compare: suite\.judge is"),
        "seed": ({"seed": 3}, r"^compare: suite\.seed is 0 for plain and 3 for seed"),
        "data": (
            {"words": "tell"},
            r"^compare: 4 of 4 examples differ between plain and data though their ids are the same \(first: '0'\)",
        ),
    }
    for name, (fields, says) in others.items():
        with pytest.raises(ConfigError, match=says):
            compare.folders(plain, folder_of(tmp_path / name, **fields))


def test_one_example_in_common_is_no_comparison():
    with pytest.raises(ConfigError, match=r"^compare: 1 of 5 examples in common"):
        compare.results(run(a="fff"), [replace(r, example=str(int(r.example) + 2)) for r in run(a="fff")])
    row = compare.results(run(a="fff"), [replace(r, example=str(int(r.example) + 1)) for r in run(a="fff")]).row("a")
    assert (row["n"], row["left out"]) == (2, 2)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"queries": math.nan}, "queries: nan given; a whole number of at least 0"),
        ({"attempts": -1}, "attempts: -1 given; a whole number of at least 0"),
        ({"distance": math.inf}, "distance: inf given; a finite number"),
        ({"status": ["failed"]}, r"status: \['failed'\] given; a text"),
        ({"metrics": None}, "metrics: None given; a mapping of names"),
        ({"metrics": {"a": "x"}}, r"metrics\.a: 'x' given; a number"),
        ({"attack": ""}, "attack: '' given; a text that is not empty"),
    ],
)
def test_a_result_that_no_suite_writes_is_refused_with_its_line(tmp_path, values, says):
    folder = folder_of(tmp_path / "run")
    lines = (folder / "results.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | values)
    (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(ConfigError, match=f"results.jsonl, line 2: {says}"):
        compare.folders(folder, folder)


@pytest.mark.parametrize("name", ["settings", "attacks", "examples", "results"])
def test_settings_that_no_suite_writes_are_refused(tmp_path, name):
    folder = folder_of(tmp_path / "run")
    path = folder / "suite.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 3}))
    with pytest.raises(ConfigError, match=rf"suite\.json: {name}: 3 given"):
        compare.folders(folder, folder)


def test_results_that_were_cut_off_or_are_of_another_attack_are_not_compared(tmp_path):
    whole, folder = folder_of(tmp_path / "whole"), folder_of(tmp_path / "run")
    path = folder / "results.jsonl"
    text = path.read_text()
    path.write_text(text.replace('"bang"', '"other"', 1))
    with pytest.raises(ConfigError, match=r"holds 3 of 4 results"):
        compare.folders(whole, folder)
    (folder / "suite.json").unlink()
    path.write_text(text[:-20])
    with pytest.raises(ConfigError, match=r"the last line of .*results\.jsonl is cut off"):
        compare.folders(whole, folder)
