"""configs/gan: every file builds without loading anything and prints the sum its header states; every one runs, made small."""

import copy
import re
from pathlib import Path

import pytest
import torch

from advalign import config, data, plugins

ROOT = Path(plugins.__file__).parents[1]
FILES = sorted((ROOT / "configs" / "gan").glob("*.yaml"))
RUN = "gapo gad spin apo adv_rm gail airl prism ganpo constraints".split()
WORDS = {"kind": "words", "data": "task:constraints"}


def described(name):
    return config.read(ROOT / "configs" / "gan" / f"{name}.yaml")


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_builds_and_loads_nothing(path, monkeypatch):
    monkeypatch.setattr("advalign.training.build.load", lambda *a, **k: pytest.fail("a model was loaded"))
    monkeypatch.setattr("advalign.data.examples", lambda *a, **k: pytest.fail("data were read"))
    assert " loss = 1 " in config.trainer(config.read(path)).formula()


@pytest.mark.parametrize("name", [*(n for n in RUN if n != "constraints"), "cooper"])
def test_header_names_the_paper_and_every_objective(name):
    """The header has one line per learner, with every objective of the file, and its coefficient where it is not 1."""
    path = ROOT / "configs" / "gan" / f"{name}.yaml"
    header = path.read_text(encoding="utf-8").split("learners:")[0]
    assert re.match(r"# [^\n]*\(arXiv:\d{4}\.\d{5}\)", header)
    assert f"#   advalign train configs/gan/{name}.yaml\n" in header
    lines = dict(re.findall(r"^#   (\w+) +loss = (.*)$", header, re.MULTILINE))
    run = described(name)
    for term in run["objectives"].values():
        said = lines[term.get("learner", "policy")]
        assert f"{term['kind']}({term['source']}" in said
        if term.get("coef", 1) != 1:
            assert f"{term['coef']:g} {term['kind']}({term['source']}" in said


def small(name):
    """Untrained models of two layers, the constraints task for data, two steps of the last stage; everything else as it is."""
    run = copy.deepcopy(described(name))
    for role, learner in run["learners"].items():
        reads = role == "discriminator" and name in ("gapo", "gail", "airl", "constraints")
        learner |= {"model": "scratch:encoder-tiny?hidden_size=32" if reads else "scratch:tiny-gpt2?n_embd=32", "tokenizer": WORDS}
        learner |= {"max_length": 32, "minibatches": 1, "warmup_steps": 0, "learning_rate": 1e-3, "lr_scheduler_type": "constant"}
        learner["options"] = {k: v for k, v in learner.get("options", {}).items() if k == "pooling"}
        if described(name)["learners"][role]["model"].startswith("latent:"):
            learner["model"] = "latent:policy?hidden_size=16&num_attention_heads=2&intermediate_size=32"
            del learner["tokenizer"]
    for term in run["objectives"].values():
        term |= {"site": "layer:1"} if "site" in term else {}
    for source in run["sources"].values():
        source |= {"data": "task:constraints", "limit": 12} if "data" in source else {}
        source |= {key: value for key, value in (("batch_size", 4), ("group_size", 3), ("collect", 4)) if key in source}
        source |= {"sampling": {"max_new_tokens": 6}} if "sampling" in source else {}
        for reward in source.get("rewards", ()):
            reward |= {"kind": "exact_answer"} if reward["kind"] == "math" else {}  # a task verifies itself
    for copy_ in run.get("frozen", {}).values():
        copy_ |= {"refresh": 1} if "refresh" in copy_ else {}
    if "stages" in run:
        run["stages"] = [run["stages"][-1] | {"steps": 2}]
    run["evaluations"] = {}
    run["args"] = {"max_steps": 2, "token_budget": 1024}
    return run


@pytest.mark.parametrize("name", RUN)
def test_two_steps(name):
    trainer = config.trainer(small(name))
    trainer.start()
    before = {n: [p.detach().clone() for p in r.network.parameters()] for n, r in trainer.learners.items()}
    log = trainer.train(progress=False)[-1]
    active = trainer.run_spec.step_plan(trainer.run_spec.stages[-1]).objectives
    for term in active:
        assert torch.isfinite(torch.tensor(log[f"{term}/loss"])), term
    for learner in {t.learner for t in active.values()}:
        moved = zip(before[learner], trainer.learners[learner].network.parameters(), strict=True)
        assert any(not torch.equal(a, b) for a, b in moved), learner


def test_cooper_ranks_what_the_policy_itself_got_right():
    """After a few demonstrations some answers are right; they are the real side, and each corrupted one fails its verifier."""
    run = small("cooper")
    run["sources"]["demos"] = {"kind": "demos", "data": "task:constraints", "batch_size": 16}
    run["sources"]["write"] |= {"batch_size": 8, "group_size": 4}
    run["sources"]["pairs"] |= {"corrupt": ["drop", "repeat", "swap"]}
    run["objectives"]["imitate"] = {"kind": "sft", "source": "demos"}
    run["learners"]["policy"]["learning_rate"] = 3e-3
    run["stages"] = [
        {"name": "imitate", "steps": 60, "objectives": ["imitate"]},
        {"name": "game", "steps": 2, "objectives": ["policy", "rank"]},
    ]
    trainer = config.trainer(run)
    before = trainer.train(progress=False)[-1]
    assert torch.isfinite(torch.tensor([before["rank/loss"], before["policy/loss"]])).all()
    items = trainer.context.items["pairs"]
    verify = {e.prompt: e.verify for e in data.examples("task:constraints")}
    real, worse = ([i for i in items if i.kind == kind] for kind in (0, 3))
    assert real
    assert worse
    assert all(verify[i.prompt](i.text) >= 1 for i in real)
    assert any(verify[i.prompt](i.text) < 1 for i in worse)


def test_in_gad_every_prompt_has_both_sides():
    """The warm-up too: the student is sampled although no policy objective reads it."""
    run = small("gad")
    run["stages"] = [described("gad")["stages"][0] | {"steps": 1}]
    trainer = config.trainer(run)
    trainer.start()
    log = trainer.training_step()
    assert "discriminator/accuracy/generated" in log
    runtime = trainer.context.sources["contrast"]
    items = runtime.draw(1, 0)
    for group in {i.group for i in items}:
        assert {i.kind for i in items if i.group == group} == {0, 2}


def test_airl_subtracts_the_density_of_the_policy_from_every_score():
    trainer = config.trainer(small("airl"))
    trainer.start()
    trainer.training_step()
    runtime = trainer.context.sources["contrast"]
    items = trainer.context.items["contrast"]
    texts = [i.text for i in items], [i.finished for i in items]
    # Computed before the policy was updated, so they differ from the current ones; those of the same draw, computed again, do not.
    again = runtime._with_offset(items)
    assert [i.offset for i in again] == trainer.context.logprobs("policy", [i.prompt for i in items], *texts)
    rows = runtime.rows(again, trainer.learners["discriminator"].network.encoder)
    assert rows.offset.tolist() == pytest.approx([i.offset for i in again], rel=1e-6)
