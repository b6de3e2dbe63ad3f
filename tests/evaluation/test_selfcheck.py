"""Models whose robustness is a mirage are caught, each by the check meant for it; a healthy one is not, and a linear one in closed form."""

import copy
import json
from functools import cache

import pytest
import torch
from helpers import victims
from torch import nn
from torch.nn import functional as F

from advalign import adversaries, attacks, cli
from advalign.errors import ConfigError
from advalign.evaluation import Suite
from advalign.evaluation.selfcheck import selfcheck
from advalign.metrics.utility import degenerate
from advalign.models import Network, load
from advalign.targets import ClassifierTarget, GeneratorTarget
from advalign.types import Example, Outputs, ThreatModel

SMALL = {"radius": 0.3, "steps": 6, "queries": 44, "number": 8}


def healthy():
    return victims.classifier(15)


def wrapped(forward, network=None):
    """The healthy classifier around `forward(self, hidden states, their clean value) -> logits`."""

    class Wrapped(Network):
        def forward(self, tokens, needs, edits=None, temperature=None):
            clean = self.model.get_input_embeddings()(tokens.ids)
            hidden = clean + (edits["embedding"].add if edits else 0)
            return Outputs(class_logits=forward(lambda h: self.model(**self._inputs(tokens, h)).logits, hidden, clean))

    base = network or healthy()
    return Wrapped(base.model, base.encoder, "classifier", pooling=base.pooling).eval()


def run(model, examples=None, **options):
    """{name: check}, on the sentences if nothing else is given."""
    return {c.name: c for c in selfcheck.run(model, examples or victims.sentences(40), **options)}


UNIT = 0.18  # the mean embedding norm of the healthy classifier, about


def within(status, checks):
    return {name for name, check in checks.items() if check.status == status}


MASKS = {
    # Same predictions, softmax 0 or 1 in float32: cross-entropy has no gradient.
    "saturated": lambda model, h, clean: 1000 * model(h),
    "noisy": lambda model, h, clean: model(h) + 0.3 * torch.randn(h.shape[0], 2),
    "dropout": lambda model, h, clean: model(F.dropout(h, 0.1, training=True)),
    # Steps of a tenth of a norm per coordinate: flat almost everywhere.
    "quantised": lambda model, h, clean: model((h / 0.02).round() * 0.02),
    # Slope 1 + 20 cos(5000 h): twenty times the true one, of a sign that turns every 0.0006.
    "shattered": lambda model, h, clean: model(h + 0.004 * torch.sin(5000 * h)),
    "constant": lambda model, h, clean: 0 * model(h) + torch.tensor([1.0, 0.0]),
    "probabilities": lambda model, h, clean: model(h).softmax(1),
    # "Detects" an edit of more than 0.6 norms and answers as if there were none.
    "detector": lambda model, h, clean: model(torch.where((h - clean).norm(dim=2, keepdim=True) > 0.6 * UNIT, clean, h)),
}

# Which checks must fail and which must pass for each of them; the others are not run.
CASES = {
    "saturated": ({"gradients", "loss"}, {"randomised", "constant", "first_order", "gradient_free", "radius", "unbounded"}),
    "noisy": ({"randomised"}, {"constant", "gradients"}),
    "dropout": ({"randomised"}, {"constant", "gradients"}),
    "quantised": ({"gradients", "first_order", "ordering", "gradient_free", "radius", "unbounded"}, {"randomised", "constant"}),
    "shattered": ({"first_order", "gradient_free"}, {"randomised", "constant", "gradients"}),
    "constant": ({"constant", "gradients", "unbounded", "radius"}, {"randomised"}),
    "probabilities": ({"logits"}, {"randomised", "constant"}),
    "detector": ({"radius"}, {"randomised", "constant", "gradients", "first_order", "ordering", "gradient_free"}),
}


@cache
def checked(name):
    """{name: check} of one of the models, all checks of the healthy one."""
    if name == "healthy":
        return run(healthy(), **SMALL)
    fails, passes = CASES[name]
    idle = {"gradient_free", "converged", "dropout", "loss"} if name == "constant" else set()
    return run(wrapped(MASKS[name]), **SMALL, only=sorted(fails | passes | idle))


def test_a_healthy_classifier_passes_everything():
    checks = checked("healthy")
    assert list(checks) == [
        "randomised", "constant", "logits", "gradients", "first_order", "ordering", "gradient_free", "converged", "dropout", "radius",
        "unbounded", "loss",
    ]  # fmt: skip
    assert within("pass", checks) == set(checks)


@pytest.mark.parametrize("name", CASES)
def test_a_masked_model_is_caught_by_the_check_meant_for_it(name):
    fails, passes = CASES[name]
    checks = checked(name)
    assert fails <= within("fail", checks)
    assert passes <= within("pass", checks)


def test_the_figures_say_what_was_wrong():
    assert checked("saturated")["gradients"].figures["zero, cross-entropy"] == 1.0
    assert checked("saturated")["gradients"].figures["zero, margin"] == 0.0
    assert checked("quantised")["gradients"].figures["zero, margin"] == 1.0
    assert checked("constant")["constant"].figures["fraction of the most frequent prediction"] == 1.0
    assert checked("shattered")["first_order"].figures["median ratio at 0.1 radius"] < 0.25
    assert checked("quantised")["gradient_free"].figures["gain"] > checked("quantised")["gradient_free"].figures["gain of pgd"]
    # Nothing moves a constant answer, so comparisons with the attack do not pass as if they had compared something.
    assert {"gradient_free", "converged", "dropout", "loss"} <= within("warn", checked("constant"))
    assert "nothing to compare" in checked("constant")["gradient_free"].meaning


def test_a_cut_graph_is_a_failure_and_not_a_crash():
    cut = wrapped(lambda model, h, clean: model((h / 0.02).long() * 0.02))
    checks = run(cut, **SMALL)
    assert checks["gradients"].status == "fail"
    assert "No gradient reaches" in checks["gradients"].meaning
    assert set(checks) == {"gradients", "randomised", "constant"}


def test_dropout_left_on_is_said_and_the_modes_are_left_alone():
    network = load(
        "scratch:encoder-tiny",
        head="classifier",
        tokenizer={"kind": "words"},
        texts=[e.prompt for e in victims.sentences(40)],
        max_length=32,
    )
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
    network.train()
    network.model.eval()
    first = next(m for m in network.modules() if isinstance(m, nn.Dropout))
    first.train()
    modes = [m.training for m in network.modules()]
    state = torch.random.get_rng_state()
    checks = run(network, **SMALL, only=("randomised", "dropout"))
    assert checks["randomised"].status == "warn"
    assert checks["randomised"].figures["largest relative difference"] == 0.0
    assert [m.training for m in network.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(p.grad is None for p in network.parameters())


def test_a_mask_that_is_on_in_evaluation_only_is_seen_through_from_training_mode():
    base = healthy()

    class Masked(Network):
        def forward(self, tokens, needs, edits=None, temperature=None):
            hidden = self.model.get_input_embeddings()(tokens.ids) + (edits["embedding"].add if edits else 0)
            hidden = hidden if self.training else (hidden / 0.02).round() * 0.02
            return Outputs(class_logits=self.model(**self._inputs(tokens, hidden)).logits)

    masked = Masked(base.model, base.encoder, "classifier", pooling=base.pooling).eval()
    checks = run(masked, **SMALL, only=("dropout",))
    assert checks["dropout"].status == "fail"
    assert checks["dropout"].figures["gain, training mode"] > 10 * checks["dropout"].figures["gain, evaluation mode"]


def test_too_little_effort_is_not_converged():
    checks = run(victims.classifier(), **SMALL | {"steps": 1}, only=("converged",))
    assert checks["converged"].status == "fail"
    assert checks["converged"].figures["4 x steps"] > checks["converged"].figures["base"]


class Linear(Network):
    """Logits (0, mean_t h_t . w)."""

    def __init__(self, network):
        super().__init__(network.model, network.encoder, "classifier")
        self.w = nn.Parameter(torch.linspace(-1, 1, network.width("embedding"), dtype=torch.float64))

    def forward(self, tokens, needs, edits=None, temperature=None):
        hidden = self.model.get_input_embeddings()(tokens.ids) + (edits["embedding"].add if edits else 0)
        score = ((hidden @ self.w) * tokens.mask).sum(1) / tokens.mask.sum(1)
        return Outputs(class_logits=torch.stack([torch.zeros_like(score), score], 1))


def labelled(network):
    """Sentences with the label that the network gives them."""
    examples = victims.sentences(12)
    predicted = ClassifierTarget(network).predict([e.prompt for e in examples]).argmax(1).tolist()
    return [Example(prompt=e.prompt, label=k, id=e.id) for e, k in zip(examples, predicted, strict=True)]


LINEAR = ("first_order", "ordering", "gradient_free", "radius", "unbounded")


@pytest.mark.parametrize(("ball", "dual"), [("L2", 2.0), ("Linf", 1.0)])
def test_a_linear_model_in_closed_form(ball, dual):
    """In a ball of radius r per token the mean score moves by at most r ||w||_q, along the gradient, which is the same everywhere:
    one step gains exactly that, PGD no more, the first-order ratio is 1; an example of score s is broken where r ||w||_q > |s|."""
    network = Linear(victims.classifier(dtype="float64"))
    examples = labelled(network)
    target = ClassifierTarget(network)
    radius, unit = 0.2, network.mean_embedding_norm()
    checks = run(target, examples, threat=ThreatModel(radius=radius, ball=ball), queries=44, number=12, only=LINEAR)
    reach = radius * unit * network.w.detach().norm(p=dual).item()
    ordering, first = checks["ordering"].figures, checks["first_order"].figures
    assert ordering["one step"] == pytest.approx(reach, rel=1e-6)
    assert 0.97 * reach < ordering["pgd"] < reach * (1 + 1e-6)
    assert ordering["best of as much noise"] < 0.9 * reach
    assert first["median ratio at 0.01 radius"] == pytest.approx(1, abs=1e-6)
    assert 0.1 * reach < checks["gradient_free"].figures["gain"] < reach
    scores = target.predict([e.prompt for e in examples])[:, 1].abs()
    for factor in (0.25, 1.0, 4.0):
        expected = (factor * reach > scores).double().mean().item()
        assert checks["radius"].figures[f"broken at {factor:g} x"] == pytest.approx(expected)
    assert checks["unbounded"].status == "pass"
    assert within("fail", checks) == set()


def test_every_query_is_counted_and_two_runs_agree():
    network = Linear(victims.classifier(dtype="float64"))
    examples = labelled(network)
    runs = []
    for batch_size in (5, 32):
        target = ClassifierTarget(network)
        runs.append(selfcheck.run(target, examples, **SMALL, batch_size=batch_size, only=("randomised", "gradients", *LINEAR[:3])))
        # Beside the checks: 12 predictions to choose from, 8 clean scores, 8 for the first gradient.
        assert target.num_queries == 12 + 8 + 8 + sum(c.queries for c in runs[-1])
    for one, two in zip(*runs, strict=True):
        assert (one.name, one.status, one.queries) == (two.name, two.status, two.queries)
        assert one.figures == pytest.approx(two.figures, abs=1e-9)


def test_edits_from_an_honest_model_beat_those_of_a_masked_one_and_not_the_reverse():
    masked = wrapped(MASKS["quantised"])
    checks = run(masked, **SMALL, only=("randomised",), transfer=[healthy()])
    assert checks["transfer"].status == "fail"
    checks = run(healthy(), **SMALL, only=("randomised",), transfer=[masked, healthy()])
    # From itself: the same edits, so never beaten.
    assert (checks["transfer 0"].status, checks["transfer 1"].status) == ("pass", "pass")
    assert checks["transfer 1"].figures["gain"] == pytest.approx(checks["transfer 1"].figures["gain of pgd"])
    other = load("scratch:encoder-tiny?hidden_size=32", head="classifier", tokenizer={"kind": "words"}, texts=["a b"], max_length=32)
    with pytest.raises(ConfigError, match="transfer model 0 has another head, tokenizer or hidden size"):
        run(healthy(), **SMALL, only=("randomised",), transfer=[other])


# --------------------------------------------------------------------------------------------------------- generators


GENERATOR = SMALL | {"max_new_tokens": 3, "number": 5, "queries": 22}


def with_head(scale, favourite=None):
    """The generator with another output layer: its logits times `scale`, and one token far above all."""
    network = copy.deepcopy(victims.generator_model(60))
    old = network.model.get_output_embeddings()
    new = nn.Linear(*reversed(old.weight.shape))
    with torch.no_grad():
        new.weight.copy_(scale * old.weight)
        new.bias.zero_()
        if favourite is not None:
            new.bias[favourite] = 100.0
    network.model.set_output_embeddings(new)
    return network


def test_a_healthy_generator_fails_nothing_and_answers_are_looked_at():
    target = GeneratorTarget(victims.generator_model(60))
    checks = run(target, victims.sums(), **GENERATOR)
    assert within("fail", checks) == set()
    assert {"gradients", "ordering", "gradient_free", "radius", "unbounded", "outputs"} <= within("pass", checks)
    assert not {"constant", "loss"} & set(checks)


def test_a_generator_that_is_saturated_or_says_one_thing_is_caught():
    saturated = run(with_head(1000.0), victims.sums(), **GENERATOR, only=("gradients",))
    assert saturated["gradients"].status == "fail"
    one_thing = run(with_head(1.0, favourite=7), victims.sums(), **GENERATOR, only=("outputs",))
    assert one_thing["outputs"].status == "fail"
    assert one_thing["outputs"].figures["most frequent answer"] == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (" ...!? ", True),
        ("three", False),
        ("no no no no", False),
        ("a b " * 6, True),
        ("the cat sat on the mat and slept", False),
    ],
)
def test_degenerate_answers(text, expected):
    """ "a b" six times: 11 word pairs, 2 of them distinct. "no no no no" has fewer than eight words: too short to tell."""
    assert degenerate(text) == expected


# ----------------------------------------------------------------------------------------------- the log of a training


def log(folder, gains, start=0.5):
    lines = [{"step": i, "pgd/loss_start": start, "pgd/loss_end": start + g, "pgd/gain": g} for i, g in enumerate(gains)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return selfcheck.training(folder)


def test_the_log_of_a_training_says_whether_its_inner_loop_climbed(tmp_path):
    (steady,) = log(tmp_path, [0.1, 0.1, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3])
    # Quarters of two: gains 0.1, 0.2, 0.2, 0.3 over a start of 0.5.
    assert steady.name == "training pgd"
    assert steady.status == "pass"
    assert steady.figures["relative gain, first"] == pytest.approx(0.2)
    assert steady.figures["relative gain, last"] == pytest.approx(0.6)
    assert steady.figures["loss_end / loss_start, last"] == pytest.approx(1.6)
    (collapsed,) = log(tmp_path, [0.2, 0.2, 0.3, 0.3, 0.1, 0.1, 0.01, 0.01])
    assert collapsed.status == "warn"
    (dead,) = log(tmp_path, [0.2, 0.2, 0.3, 0.3, 0.1, 0.1, -0.01, -0.01])
    assert dead.status == "fail"
    (negative,) = log(tmp_path, [0.1] * 8, start=-0.5)  # the sum of a policy's terms may be below zero
    assert negative.status == "pass"
    assert negative.to_json()["figures"]["loss_end / loss_start, last"] is None
    (tmp_path / "log.jsonl").write_text('{"step": 1, "policy/loss": 0.1}\n')
    assert selfcheck.training(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------- output


def test_json_and_markdown_carry_every_check():
    checks = list(checked("quantised").values())
    assert [(c["name"], c["status"]) for c in json.loads(selfcheck.to_json(checks))] == [(c.name, c.status) for c in checks]
    shown = selfcheck.markdown(checks)
    for check in checks:
        assert f"| {check.name} | {check.status} |" in shown
        assert check.meaning in shown


def test_a_suite_is_checked_in_the_threat_model_of_its_own_attack(monkeypatch):
    threats = []
    monkeypatch.setattr(selfcheck.SelfCheck, "run", lambda self, *a, **k: threats.append(self.threat) or [])
    noise = attacks.Embedding(adversary=adversaries.Noise(radius=9.0))
    pgd = attacks.Embedding(adversary=adversaries.PGD(radius=9.0, ball="Linf", where="prompt"))
    suite = Suite(data=victims.sentences(4), attacks={"noise": noise, "pgd": pgd}, radii=(0.5, 0.1, 0.2))
    selfcheck.of_suite(suite, healthy())
    assert threats == [ThreatModel(radius=0.2, ball="Linf", where="prompt")]


def test_the_command_puts_the_checks_into_the_report_and_the_summary(monkeypatch, tmp_path, capsys):
    def of_suite(suite, network, *, transfer, folder):
        assert (suite.seed, network.head, [n.head for n in transfer], folder) == (3, "classifier", ["classifier"], tmp_path / "run")
        broken = selfcheck.Check(name="radius", status="fail", figures={"broken at 1 x": 0.25, "x": float("inf")}, meaning="Mind this.")
        return [broken, selfcheck.Check(name="loss", status="pass", figures={}, meaning="Fine.", queries=7)]

    monkeypatch.setattr(selfcheck, "of_suite", of_suite)
    healthy().save_pretrained(tmp_path / "run" / "policy")
    (tmp_path / "run" / "log.jsonl").write_text("")
    rows = [{"prompt": e.prompt, "label": e.label} for e in victims.sentences(4)]
    attack = {"kind": "embedding", "adversary": {"kind": "pgd", "steps": 1}, "restarts": 1}
    (tmp_path / "suite.yaml").write_text(json.dumps({"data": rows, "attacks": {"pgd": attack}, "seed": 3}))
    command = ["advalign", "eval", str(tmp_path / "run"), "--suite", str(tmp_path / "suite.yaml"), "--output", str(tmp_path / "out")]
    for more, code in ([["--self-check", "--transfer", str(tmp_path / "run" / "policy")], 0], [["--transfer", "x"], 2]):
        monkeypatch.setattr("sys.argv", command + more)
        with pytest.raises(SystemExit) as left:
            cli.main()
        assert (left.value.code or 0) == code
    printed = capsys.readouterr()
    assert "--transfer was given without --self-check" in printed.err
    assert "| radius | fail | broken at 1 x 0.250; x inf | Mind this. | 0 |" in printed.out
    assert "Self-check `radius` fails. Mind this." in printed.out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(c["name"], c["figures"], c["queries"]) for c in summary["self_checks"]] == [
        ("radius", {"broken at 1 x": 0.25, "x": None}, 0),
        ("loss", {}, 7),
    ]
    assert "Mind this." in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"only": ("order",)}, "self-check.only: no check 'order'"),
        ({"steps": 0}, "self-check.steps: 0 given"),
        ({"radius": 0.0}, "a ball of radius 0 holds no attack"),
    ],
)
def test_refused(bad, says):
    with pytest.raises(ConfigError, match=says):
        selfcheck.run(healthy(), victims.sentences(8), **bad)


def test_examples_that_cannot_be_attacked_are_refused_in_a_sentence():
    wrong = [Example(prompt=e.prompt, label=1 - e.label, id=e.id) for e in victims.sentences(8)]
    with pytest.raises(ConfigError, match="none of 8 examples is one that the classifier gets right"):
        selfcheck.run(healthy(), wrong)
    with pytest.raises(ConfigError, match="has no label"):
        selfcheck.run(healthy(), [Example(prompt="a good movie")])
    with pytest.raises(ConfigError, match="with a reference response"):
        selfcheck.run(victims.generator_model(60), [Example(prompt="one plus one =")])
