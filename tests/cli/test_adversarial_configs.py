"""configs/adversarial: every file builds without loading anything and prints the sum its header states; all of them, made small, run."""

import copy
import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from advalign import cli, config, plugins

ROOT = Path(plugins.__file__).parents[1]
FOLDER = ROOT / "configs" / "adversarial"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.stem for path in FILES]
TEXTS = ["a good film", "the plot was dull and long", "fine", "bad acting , good jokes", "not a good one", "a dull film with fine jokes"]
CONSTRAINTS = "task:constraints"
SUMS = {"task": {"kind": "arithmetic", "digits": 1}}


def described(name, overrides=()):
    return config.read(FOLDER / f"{name}.yaml", overrides)


def small(name, folder, **extra):
    """The configuration with untrained models of two blocks and few rows of other data; objectives and adversaries as they are, but for
    the numbers of blocks and of steps."""
    run = copy.deepcopy(described(name))
    rows, lexicon = folder / "rows.jsonl", folder / "lexicon.json"
    rows.write_text("".join(json.dumps({"text": text, "label": i % 2}) + "\n" for i, text in enumerate(TEXTS)))
    lexicon.write_text(json.dumps({"good": ["fine"], "film": ["plot", "acting"], "dull": ["bad", "long"]}))
    for learner in run["learners"].values():
        classes = learner.get("head") == "classifier"
        rolls = any(source["kind"] == "prompts" for source in run["sources"].values())
        data = str(rows) if classes else SUMS if rolls else CONSTRAINTS
        learner |= {
            "model": "scratch:encoder-tiny?hidden_size=32" if classes else "scratch:tiny?hidden_size=32",
            "tokenizer": {"kind": "characters" if rolls else "words", "data": data},
            "max_length": 32,
            "learning_rate": 1e-3,
            "warmup_steps": 0,
            "options": {k: v for k, v in learner["options"].items() if k in ("lora", "num_labels", "dropout")},
        }
        if "layers_to_transform" in learner["options"].get("lora", {}):
            learner["options"]["lora"]["layers_to_transform"] = [0, 1]
    shrink_sources(run, str(rows))
    for adversary in run["adversaries"].values() if "adversaries" in run else ():
        adversary |= {"sites": ["embedding", "layer:0"]} if len(adversary.get("sites", ())) > 1 else {}
        adversary |= {"lexicon": str(lexicon), "budget": 0.5} if "lexicon" in adversary else {}
        adversary |= {"replace": "unknown"} if adversary["kind"] == "mask" else {}  # untrained models have no mask token
        if adversary["kind"] == "refusal":
            adversary |= {"harmful": CONSTRAINTS, "harmless": {"task": "constraints", "split": "test"}, "number": 8, "probability": 1.0}
        adversary |= {"steps": min(adversary["steps"], 3)} if "steps" in adversary else {}
    for term in run["objectives"].values():
        term |= {"layers": [0, 1]} if "layers" in term else {}
    for ramp in run.get("schedules", {}).values():
        ramp |= {"delay": 0, "steps": 1}
    run["stages"] = [stage | {"steps": 1} for stage in run.get("stages", [])]
    run["evaluations"] = {}
    run["args"] = {"max_steps": 2, "token_budget": 4096}
    return run | extra


def shrink_sources(run, rows):
    """Few rows of other data for every source."""
    for source in run["sources"].values():
        if source["kind"] == "persistent_suffixes":
            source |= {"size": 4, "batch_size": 2, "attack": source["attack"] | {"length": 4, "steps": 1, "candidates": 4, "top": 4}}
            continue
        source.pop("columns", None)
        source |= {"data": {"labels": rows, "prompts": SUMS}.get(source["kind"], CONSTRAINTS), "split": "train", "batch_size": 4}
        if source["kind"] == "prompts":
            source.pop("split")
            source |= {"group_size": 4, "rewards": [{"kind": "format", "pattern": ".*[01].*"}]}
            source["sampling"] = source["sampling"] | {"max_new_tokens": 4}


def ran(described):
    """(trainer, log per step, how far the learner's weights went)."""
    trainer = config.trainer(described)
    trainer.start()
    (runtime,) = trainer.learners.values()
    before = [p.detach().clone() for p in runtime.network.parameters()]
    history = trainer.train(progress=False)
    moved = sum(float((p.detach() - q).abs().sum()) for p, q in zip(runtime.network.parameters(), before, strict=True))
    return trainer, history, moved


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_builds_and_loads_nothing(path, monkeypatch):
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr("advalign.data.examples", lambda *a, **k: pytest.fail("data were read"))
    trainer = config.trainer(config.read(path))
    assert trainer.args.output_dir == f"out/{path.stem}"  # no two of them write to one folder
    assert " loss = " in trainer.formula()


@pytest.mark.parametrize("name", NAMES)
def test_header_states_the_loss_and_commands_that_hold(name):
    header = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").split("learners:")[0]
    printed = config.trainer(described(name)).formula().splitlines()
    assert re.findall(r"^#   (\w+ loss = .*)$", header, re.MULTILINE) == [line for line in printed if " loss = " in line]
    assert re.search(r"arXiv:\d{4}\.\d{5}|ICLR 2020", header)
    assert re.search(
        r"A comment names the source of its value; values without one are ours\.|All values are ours\.", header.replace("\n# ", " ")
    )
    commands = re.findall(r"^#   advalign train configs/adversarial/(\w+)\.yaml(.*)$", header, re.MULTILINE)
    assert commands[0] == (name, "")
    assert len(commands) == 2
    for file, rest in commands:
        overrides = [word for word in shlex.split(rest.partition("   ")[0]) if "=" in word]
        assert file == name
        assert bool(rest) == bool(overrides)
        assert config.trainer(described(name, overrides)).formula()


def test_show_prints_the_threat_and_the_price(capsys):
    cli.show(FOLDER / "lat_jailbreak.yaml", [])
    printed = " ".join(capsys.readouterr().out.split())
    assert "policy loss = 1 lat(harm | lat) + 1.5 sft(chat)" in printed
    assert "L2 ball per token at embedding, layer:8, layer:16, layer:24, layer:30" in printed
    assert "radius 6, prompt tokens, 16 steps, dropout off, ascends target" in printed
    assert "1 clean + 16 inner + 1 adversarial" in printed


@pytest.mark.parametrize("name", NAMES)
def test_runs_when_made_small(name, tmp_path):
    run = small(name, tmp_path)
    _, history, moved = ran(run)
    assert moved > 0
    seen = set()
    for log in history:
        losses = {term: log[f"{term}/loss"] for term in run["objectives"] if f"{term}/loss" in log}
        assert torch.isfinite(torch.tensor(list(losses.values()))).all(), losses
        seen |= set(losses)
        assert all(log[k] >= -1e-6 for k in log if k.endswith("/gain") and run["adversaries"][k.split("/")[0]]["kind"] == "pgd")
    assert seen == set(run["objectives"])


def test_smart_starts_at_its_own_average_and_then_pulls_towards_it(tmp_path):
    """The Bregman term against an average: 0 before the first update, above 0 after it, and its teacher is 0.999 of the first weights."""
    weights = []
    for steps in (0, 1, 2):
        run = small("smart", tmp_path, args={"max_steps": steps, "token_budget": 4096})
        run["learners"]["model"]["options"].pop("dropout")  # the teacher has none
        trainer = config.trainer(run)
        history = trainer.train(progress=False)
        (runtime,) = trainer.learners.values()
        weights.append([p.detach() for p in runtime.network.parameters()])
    assert history[0]["near/divergence"] < 1e-12
    assert history[1]["near/divergence"] > 1e-6
    for mean, a, b, c in zip(trainer.frozen["teacher"].parameters(), *weights, strict=True):
        torch.testing.assert_close(mean, 0.999 * (0.999 * a + 0.001 * b) + 0.001 * c, rtol=1e-5, atol=1e-7)


def test_circuit_breakers_change_the_representations_and_their_schedule_is_the_published_one(tmp_path):
    """c_s = alpha (1 - t / 2T), c_r = alpha t / 2T with alpha = 10, T = 150. At the start cos = 1 and the gradient is 0 but for rounding:
    Adam makes a step of it."""
    trainer = config.trainer(described("circuit_breakers"))
    stage = trainer.run_spec.stages[0]
    for t in (0, 60, 150):
        terms = trainer.run_spec.step_plan(stage, t).objectives
        assert terms["reroute"].coef == pytest.approx(10 * (1 - t / 300))
        assert terms["retain"].coef + terms["refusals"].coef == pytest.approx(10 * t / 300)
    run = small("circuit_breakers", tmp_path, args={"max_steps": 12, "token_budget": 4096})
    run["schedules"]["objectives.reroute.coef"]["steps"] = 12
    for name in ("retain", "refusals"):
        run["schedules"][f"objectives.{name}.coef"] = {"start": 1e-3, "end": 1e-3}
    _, history, _ = ran(run)
    assert history[0]["reroute/loss"] == pytest.approx(1.0, abs=1e-6)
    assert history[0]["retain/loss"] == 0.0
    assert history[-1]["reroute/cosine"] < 0.995


def test_cat_and_lat_defend_against_what_their_adversary_does(tmp_path):
    """The adversary gains: the inner sum rises, for it is a sum that makes the harmful answer likely."""
    for name, view in (("cat", "pgd"), ("lat_jailbreak", "lat"), ("capo", "pgd")):
        run = small(name, tmp_path)
        run["adversaries"][view] |= {"radius": 1.0, "relative_to": "mean_embedding_norm"}
        _, history, _ = ran(run)
        assert history[0][f"{view}/gain"] > 1e-3, name


def test_free_warms_up_for_the_published_part_of_its_run():
    # The released scripts warm up for 1256 of 20935 updates; a step of the run is three updates, and warm-up counts updates.
    run = described("free_at")
    model = run["learners"]["model"]
    updates = run["args"]["max_steps"] * model["epochs"]
    assert model["warmup_steps"] / updates == pytest.approx(1256 / 20935, abs=1e-4)
    assert config.trainer(run).run_spec.num_updates("model") == updates
