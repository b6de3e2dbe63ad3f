"""`advalign eval`, `attack` and `compare` as an evaluation in a continuous integration uses them."""

import json

import pytest
from helpers.victims import classifier, generator_model, sentences

from advalign.evaluation import Suite
from advalign.run_folder import locked


def done(result):
    code, printed, errors = result
    assert code == 0, errors
    return printed


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": e.prompt, "label": e.label, "id": e.id}) + "\n" for e in sentences(12, seed=5)))
    return path


@pytest.fixture
def suite(tmp_path, rows):
    path = tmp_path / "suite.yaml"
    path.write_text(
        f"data: {{path: {rows}}}\nexamples: 12\nseen: [bugs]\n"
        "attacks:\n  bugs: {kind: words, style: deepwordbug, max_changed: 0.5}\n"
        "  pgd: {kind: embedding, restarts: 1, adversary: {kind: pgd, radius: 3.0, steps: 3}}\n"
    )
    return path


def test_eval_fails_below_a_bound_and_not_above(advalign, victim, suite, tmp_path):
    code, printed, _ = advalign("eval", victim, "--suite", suite, "--output", tmp_path / "out", "--fail-below", "0.5")
    assert code == 1
    assert "fail: Accuracy in the worst case over the suite is 0.000, below 0.5." in printed
    assert advalign("eval", victim, "--suite", suite, "--fail-below", "0")[0] == 0


@pytest.mark.parametrize("below", ["nan", "-0.1", "60", "inf"])
def test_the_command_refuses_a_bound_before_it_loads_anything(advalign, below, tmp_path):
    code, _, errors = advalign("eval", tmp_path / "none", "--suite", tmp_path / "none.yaml", "--fail-below", below)
    assert code == 2
    assert f"eval --fail-below: {float(below)} given" in errors


def test_the_command_and_python_give_the_same_reasons(advalign, victim, tmp_path):
    suite = tmp_path / "suite.yaml"
    data = ", ".join(f'{{prompt: "{e.prompt}", label: {e.label}, id: {e.id}}}' for e in sentences(4))
    bad = "{kind: function, fn: helpers.attackers.broken}"
    suite.write_text(f"data: [{data}]\nattacks: {{bad: {bad}, fine: {{kind: words, max_changed: 0.1}}}}\n")
    code, printed, errors = advalign("eval", victim, "--suite", suite, "--fail-below", "0.0")
    assert code == 1, errors
    reasons = Suite.load(suite).run(classifier()).fails(0.0)
    assert [line.removeprefix("fail: ") for line in printed.splitlines() if line.startswith("fail: ")] == reasons
    assert any(reason.startswith("`bad` raised on 4 of 4 examples") and "RuntimeError: no attacker here" in reason for reason in reasons)
    assert any(reason.startswith("`fine` did not try 4 of 4 examples") for reason in reasons)


def test_eval_goes_on_or_begins_again_and_exports(advalign, victim, suite, tmp_path):
    out = tmp_path / "out"
    done(advalign("eval", victim, "--suite", suite, "--output", out, "--export", "garak", "--cache", tmp_path / "c", "--workers", "2"))
    whole = (out / "results.jsonl").read_bytes()
    assert (out / "garak.jsonl").read_text().count('"entry_type": "attempt"') == 24
    (out / "results.jsonl").write_bytes(whole[:200])
    done(advalign("eval", victim, "--suite", suite, "--output", out))
    assert (out / "results.jsonl").read_bytes() == whole
    (out / "suite.json").write_text(json.dumps({"fingerprint": "another"}))
    for option in ((), ("--fresh",)):
        code, _, errors = advalign("eval", victim, "--suite", suite, "--output", out, *option)
        assert (code, "another suite, model or data" in errors, "--overwrite" in errors) == (2, True, True)
    assert (out / "results.jsonl").read_bytes() == whole
    done(advalign("eval", victim, "--suite", suite, "--output", out, "--overwrite"))
    assert (out / "results.jsonl").read_bytes() == whole
    (out / "results.jsonl").write_text("broken\n")
    assert advalign("eval", victim, "--suite", suite, "--output", out)[0] == 2
    done(advalign("eval", victim, "--suite", suite, "--output", out, "--fresh"))
    assert (out / "results.jsonl").read_bytes() == whole


def test_the_command_is_refused_in_a_folder_that_another_process_writes_to(advalign, victim, suite, tmp_path):
    with locked(tmp_path / "out", "test"):
        code, _, errors = advalign("eval", victim, "--suite", suite, "--output", tmp_path / "out")
    assert (code, "is being written to by process" in errors) == (2, True)
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_eval_takes_other_data(advalign, victim, suite, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("".join(json.dumps({"text": e.prompt, "label": e.label, "id": f"x{e.id}"}) + "\n" for e in sentences(3, seed=6)))
    done(advalign("eval", victim, "--suite", suite, "--data", other, "--output", tmp_path / "out"))
    names = [json.loads(line)["example"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert set(names) == {"xs0", "xs1", "xs2"}


def test_compare_two_models_or_two_folders(advalign, victim, suite, tmp_path):
    """Against a model that was never trained, the trained one is right where nobody attacks."""
    classifier(steps=0).save_pretrained(tmp_path / "untrained")
    printed = done(advalign("compare", tmp_path / "untrained", victim, "--suite", suite, "--output", tmp_path / "both"))
    assert "# sentiment against untrained" in printed
    assert "<svg" in (tmp_path / "both" / "compare.html").read_text()
    again = done(advalign("compare", tmp_path / "both" / "first", tmp_path / "both" / "second"))
    clean = next(line for line in again.splitlines() if line.startswith("| clean"))
    assert [cell.strip() for cell in clean.split("|")][2:4] == ["0.500", "1.000"]


def test_attack_a_generator_towards_a_target(advalign, tmp_path):
    """It begins with what it was made to say: `five` after `one plus one =` is a success of the attacker, `two` is not."""
    generator_model().save_pretrained(tmp_path / "sums")
    forced = ["--kind", "prefill", "--target", "two", "text=one"]
    assert "1.000" in done(advalign("attack", tmp_path / "sums", "one plus one =", "--answer", "two", "--kind", "prefill", "tokens=1"))
    printed = done(advalign("attack", tmp_path / "sums", "two plus three =", *forced))
    assert "accuracy, worst case over the suite: **" in printed


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["eval", "nowhere/at/all", "--suite", "SUITE"], "nowhere/at/all"),
        (["eval", "EMPTY", "--suite", "SUITE"], "holds no config.json, so it is not a model"),
        (["eval", "VICTIM", "--suite", "SUITE", "--export", "garak"], "--export was given without --output"),
        (["eval", "VICTIM", "--suite", "SUITE", "--export", "garrak", "--output", "OUT"], "Did you mean 'garak'"),
        (["eval", "VICTIM", "--suite", "SUITE", "--data", "absent.jsonl"], "absent.jsonl"),
        (["eval", "VICTIM", "--suite", "TYPES"], "suite.examples: 'many' given; a whole number of at least 1 is expected"),
        (["compare", "VICTIM", "VICTIM"], "holds no results.jsonl"),
        (["eval", "VICTIM", "--suite", "SUITE", "--learner", "policy"], "is one model, not a run of several learners; leave it out"),
        (["eval", "VICTIM", "--suite", "SUITE", "--temperatures", "0.5"], "temperatures: a classifier samples nothing"),
        (["eval", "VICTIM", "--suite", "SUITE", "--device", "meta"], "--device: 'meta' holds no numbers; give cpu, or leave it out"),
        (["compare", "VICTIM", "VICTIM", "--data", "x.jsonl"], "--data was given without --suite"),
        (["attack", "VICTIM", "text", "--answer", "a", "--target", "b"], "were both given; give one"),
    ],
)
def test_mistakes_are_one_sentence(advalign, victim, suite, tmp_path, arguments, sentence):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "types.yaml").write_text("data: []\nexamples: many\nattacks: {}\n")
    places = {"TYPES": tmp_path / "types.yaml", "VICTIM": victim, "SUITE": suite, "OUT": tmp_path / "out", "EMPTY": tmp_path / "EMPTY"}
    code, _, errors = advalign(*(places.get(a, a) for a in arguments))
    assert code == 2
    said = [line for line in errors.strip().splitlines() if "Loading weights" not in line]
    assert len(said) == 1, errors
    assert sentence in said[0]
