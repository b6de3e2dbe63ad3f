"""GANPO: discriminators of hidden states, one per side of a pair, and a policy that is moved through them."""

import math

import pytest
import torch
from helpers.equal import assert_equal
from helpers.runs import DATA, policy, same, weights
from torch.nn.functional import softplus

from advalign import Frozen, Learner, Stage, Trainer, TrainingArguments
from advalign import sources as src
from advalign.errors import ConfigError
from advalign.functional import gan
from advalign.models import load
from advalign.models.perturb import captured
from advalign.objectives.dpo import DPO
from advalign.objectives.latent import Latent

SITE = "layer:1"
SMALL = "latent:policy?hidden_size=16&num_attention_heads=2&intermediate_size=32"


def reader(**fields):
    return Learner(**{"model": SMALL, "head": "score", "max_length": 32, "learning_rate": 1e-2, "options": {"dropout": 0.0}, **fields})


def ganpo(steps=2, sides=("chosen", "rejected"), preference=True, args=None, stages=(), **learner):
    """A trainer of the whole method: DPO, and a discriminator per side."""
    learners, objectives, frozen = {"policy": policy(**learner)}, {}, {"reference": Frozen(), "now": Frozen(ema=0.0)}
    if preference:
        objectives["prefer"] = DPO(source="pairs")
    for side in sides:
        learners[f"reader_{side}"] = reader()
        frozen[f"critic_{side}"] = Frozen(learner=f"reader_{side}", ema=0.0)
        objectives[f"near_{side}"] = Latent(source="pairs", site=SITE, side=side, critic=f"critic_{side}")
        objectives[side] = Latent(source="pairs", site=SITE, side=side, role="discriminate", learner=f"reader_{side}")
    pairs = src.Pairs(data=DATA, limit=8, batch_size=4, differ="response")
    return Trainer(
        learners=learners,
        sources={"pairs": pairs},
        objectives=objectives,
        frozen=frozen,
        stages=stages,
        args=args or TrainingArguments(max_steps=steps),
    )


def shaken(trainer, size=0.05):
    """Started, with the reference taken and the policy then moved away from it."""
    trainer.start()
    for name in trainer.run_spec.frozen:
        trainer.copies.get(name)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in trainer.learners["policy"].network.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    trainer.copies.blend("now", 1.0)
    return trainer


def drawn(trainer):
    runtime = trainer.context.sources["pairs"]
    return runtime.rows(runtime.draw(0, 0), trainer.learners["policy"].network.encoder)


def states(network, tokens):
    """Hidden states after the last block, of one row at a time, without padding."""
    hidden_states = []
    for row in range(tokens.ids.shape[0]):
        ids = tokens.ids[row : row + 1, : int(tokens.lengths[row])]
        with torch.no_grad(), captured(network.backbone, [SITE]) as captured_states:
            network.model(input_ids=ids)
        hidden_states.append(captured_states[SITE])
    return hidden_states


def slowly(critic, hidden):
    """The score of one row's hidden states: projection, encoder, mean, head."""
    inside = critic.backbone(inputs_embeds=critic.project(hidden), attention_mask=torch.ones(hidden.shape[:2], dtype=torch.long))
    return critic.scalar(inside.last_hidden_state.mean(1)).squeeze()


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_losses_are_those_of_a_loop_over_pairs_row_by_row(side):
    trainer = shaken(ganpo(sides=(side,), preference=False))
    rows = drawn(trainer)
    critic, side_index = trainer.learners[f"reader_{side}"].network.eval(), ("chosen", "rejected").index(side)
    current = states(trainer.learners["policy"].network, rows.tokens)
    reference = states(trainer.frozen["reference"], rows.tokens)
    ranked, near = [], []
    for pair in range(rows.tokens.ids.shape[0] // 2):
        row, other_row = 2 * pair + side_index, 2 * pair + 1 - side_index
        a, b, c = slowly(critic, reference[row]), slowly(critic, current[row]), slowly(critic, reference[other_row])
        ranked.append((-torch.log(torch.sigmoid(a - b)) - torch.log(torch.sigmoid(b - c))).detach() / 2)
        near.append(-torch.log(torch.sigmoid(b - a)).detach())
    for name, objective, expected in ((f"reader_{side}", side, ranked), ("policy", f"near_{side}", near)):
        logs = trainer.learners[name].update(
            trainer.step_plan().plans[name], {"pairs": rows}, trainer.frozen, budget=8192, key=(0, "update", name)
        )
        assert logs[f"{objective}/loss"] == pytest.approx(float(torch.stack(expected).mean()), abs=1e-10)
    distances = [(current[2 * i + side_index] - reference[2 * i + side_index]).norm(dim=-1).mean() for i in range(len(near))]
    assert logs[f"near_{side}/distance"] == pytest.approx(float(torch.stack(distances).mean()), abs=1e-10)


def test_the_policys_gradient_goes_through_the_discriminator_and_is_that_of_autograd():
    trainer = shaken(ganpo(sides=("chosen",), preference=False))
    runtime, rows = trainer.learners["policy"], drawn(trainer)
    plan = trainer.step_plan().plans["policy"]
    for group in runtime.optimizer.param_groups:
        group["lr"] = 0.0
    runtime.update(plan, {"pairs": rows}, trainer.frozen, budget=8192, key=(0, "update"))
    gradients = {n: p.grad.clone() for n, p in runtime.network.named_parameters() if p.grad is not None}
    critic, reference = trainer.frozen["critic_chosen"], trainer.frozen["reference"]
    tokens = rows.tokens.index(torch.arange(0, rows.tokens.ids.shape[0], 2))
    runtime.optimizer.zero_grad()
    current = runtime.network(tokens, {f"hidden:{SITE}"}).hidden[SITE]
    real = reference(tokens, {f"hidden:{SITE}"}).hidden[SITE].detach()
    margin = critic._score(current, tokens.mask) - critic._score(real, tokens.mask).detach()
    loss = softplus(-margin).mean()
    parameters = {n: p for n, p in runtime.network.named_parameters() if n in gradients}
    expected = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    norm = torch.sqrt(sum((g.square().sum() for g in expected if g is not None), torch.zeros((), dtype=torch.float64)))
    factor = min(1.0, runtime.config.max_grad_norm / (float(norm) + 1e-6))
    assert float(norm) > 1e-6
    for (name, gradient), wanted in zip(gradients.items(), expected, strict=True):
        wanted = torch.zeros_like(gradient) if wanted is None else wanted * factor
        assert torch.allclose(gradient, wanted, atol=1e-10), name


def test_each_player_moves_its_own_weights_and_no_others():
    trainer = shaken(ganpo())
    networks = {name: runtime.network for name, runtime in trainer.learners.items()}
    before = {name: weights(network) for name, network in networks.items()}
    rows, _ = trainer.next_step().rows("pairs", "policy")  # with the reference's log-probabilities
    copies = {name: weights(network) for name, network in trainer.frozen.items()}
    for name, runtime in trainer.learners.items():
        for network in networks.values():
            network.zero_grad(set_to_none=True)
        runtime.update(trainer.step_plan().plans[name], {"pairs": rows}, trainer.frozen, budget=8192, key=(0, "update", name))
        assert not same(before[name], weights(runtime.network))
        for other, network in networks.items():
            if other != name:
                assert all(p.grad is None for p in network.parameters())
        assert all(p.grad is None for network in trainer.frozen.values() for p in network.parameters())
    for name, network in trainer.frozen.items():
        assert_equal(weights(network), copies[name])


def test_where_the_policy_is_the_reference_nothing_tells_them_apart():
    trainer = ganpo(sides=("chosen",), preference=False, learning_rate=0.0)
    (logs,) = trainer.train(progress=False)[:1]
    assert logs["near_chosen/loss"] == pytest.approx(math.log(2), abs=1e-12)
    assert logs["near_chosen/distance"] == pytest.approx(0, abs=1e-12)
    assert logs["chosen/accuracy/real"] == 0  # D(r) > D(h) never holds where both are the same number


def test_the_order_of_three_scores_by_hand_and_the_best_of_it():
    # s_0 - s_1 = log 3, s_1 - s_2 = 0: (-log 3/4 - log 1/2) / 2.
    scores = torch.tensor([[math.log(3.0)], [0.0], [0.0]], dtype=torch.float64)
    assert float(gan.in_order(scores)) == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2, abs=1e-12)
    # Against pairs of a finite space, D(x) - D(y) tends to the log of how often x was the real one: Bradley-Terry, solved by its slope.
    p, q = torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([0.4, 0.6], dtype=torch.float64)
    best = (p / q).log().requires_grad_()
    middle = [softplus(-(best[a] - best[b])) * p[a] * q[b] for a in range(2) for b in range(2)]
    (slope,) = torch.autograd.grad(torch.stack(middle).sum(), best)
    assert torch.allclose(slope, torch.zeros(2, dtype=torch.float64), atol=1e-12)
    assert torch.equal(gan.in_order(scores + 5), gan.in_order(scores))  # only differences count


def test_nothing_depends_on_micro_batches_or_padding():
    runs = []
    for budget in (8192, 64):
        trainer = shaken(ganpo(args=TrainingArguments(max_steps=2, token_budget=budget)))
        trainer.train(progress=False)
        runs.append({name: weights(runtime.network) for name, runtime in trainer.learners.items()})
    for name, parameters in runs[0].items():
        for parameter, value in parameters.items():
            assert torch.allclose(value, runs[1][name][parameter], atol=1e-10), (name, parameter)


def test_a_discriminator_learns_who_computed_the_states_and_the_policy_to_be_taken_for_the_other():
    """First a discriminator alone, of a policy that was shaken and stands still; then the policy alone, against that discriminator."""
    stages = [Stage(steps=60, name="discriminator", objectives=("chosen",)), Stage(steps=25, name="follow", objectives=("near_chosen",))]
    logs = shaken(ganpo(sides=("chosen",), preference=False, stages=stages), size=0.1).train(progress=False)
    assert sum(row["chosen/accuracy/real"] for row in logs[50:60]) / 10 > 0.9
    lead = [row["near_chosen/score/policy"] - row["near_chosen/score/real"] for row in logs[60:]]
    assert lead[0] < -1 < 0 < lead[-1]


def test_a_game_resumes_to_the_bit(tmp_path):
    uninterrupted = ganpo(steps=4, args=TrainingArguments(max_steps=4, output_dir=str(tmp_path / "whole")))
    uninterrupted.train(progress=False)
    args = TrainingArguments(max_steps=4, output_dir=str(tmp_path / "cut"), save_steps=2)
    cut = ganpo(args=args)
    cut.start()
    for _ in range(2):
        cut.training_step()
    cut.save_checkpoint(tmp_path / "cut")
    again = ganpo(args=args)
    again.train(resume=True, progress=False)
    for name, runtime in uninterrupted.learners.items():
        assert_equal(weights(again.learners[name].network), weights(runtime.network))


def test_a_discriminator_is_saved_and_loaded(tmp_path):
    trainer = shaken(ganpo())
    network = trainer.learners["reader_chosen"].network.eval()
    network.save_pretrained(tmp_path)
    loaded = load(str(tmp_path), dtype="float64").eval()
    tokens = drawn(trainer).tokens
    hidden = torch.randn(*tokens.ids.shape, network.num_features, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert loaded.num_features == network.num_features
    assert not loaded.encoder.bidirectional
    assert torch.equal(loaded._score(hidden, tokens.mask), network._score(hidden, tokens.mask))


def test_what_it_costs_is_known_before_the_run():
    from advalign.training.forecast import forecast

    (predicted,) = forecast(ganpo())
    assert "guessed" not in "\n".join(predicted.lines())
    # A discriminator's update runs two copies of the policy: it costs more where the policy is larger, though nothing of it is trained.
    stages, costs = [Stage(steps=1, objectives=("chosen",))], []
    for model in ("scratch:tiny-gpt2?n_embd=32", "scratch:tiny-gpt2?n_embd=64"):
        (predicted,) = forecast(ganpo(stages=stages, model=model))
        costs.append(predicted.operations["update"])
    assert costs[1] > 2 * costs[0] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "latent:polcy"}, "'polcy'.*policy"),
        ({"model": "latent:policy?hidden=16"}, "hidden.*hidden_size"),
        ({"model": "latent:policy?hidden_size=x"}, "hidden_size is 'x'"),
        ({"model": "latent:policy?hidden_size=20"}, "hidden_size 20 is not a multiple of num_attention_heads 8"),
        ({"head": "value"}, "head .score.*has head .value"),
        ({"options": {"lora": {}}}, "lora"),
        ({"tokenizer": "gpt2"}, "leave it out"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(change, message):
    trainer_of = ganpo()
    learners = {**trainer_of.config["learners"], "reader_chosen": reader(**change)}
    with pytest.raises(ConfigError, match=message):
        Trainer(
            learners=learners,
            sources=trainer_of.config["sources"],
            objectives=trainer_of.config["objectives"],
            frozen=trainer_of.run_spec.frozen,
        ).start()


def test_bad_terms_are_refused():
    with pytest.raises(ConfigError, match=r"latent\.role.*discriminate"):
        Latent(source="pairs", site=SITE, role="discriminat")
    with pytest.raises(ConfigError, match=r"latent\.side.*chosen"):
        Latent(source="pairs", site=SITE, side="chose")
    with pytest.raises(ConfigError, match=r"latent\.site"):
        Latent(source="pairs", site="embedding")
    with pytest.raises(ConfigError, match=r"latent\.view"):
        Latent(source="pairs", site=SITE, view="reference")


def test_a_network_that_reads_tokens_is_no_discriminator_of_states():
    term = Latent(source="pairs", site=SITE, role="discriminate", learner="discriminator")
    learners = {"policy": policy(), "discriminator": policy(model="scratch:encoder-tiny?hidden_size=32", head="score")}
    pairs = src.Pairs(data=DATA, limit=8, batch_size=4, differ="response")
    frozen = {"reference": Frozen(), "now": Frozen(ema=0.0)}
    trainer = Trainer(learners=learners, sources={"pairs": pairs}, objectives={"rank": term}, frozen=frozen)
    with pytest.raises(ConfigError, match="latent:<learner>"):
        trainer.train(progress=False)
