"""The engine against a file of plain torch: examples/from_scratch_mixed_step.py, same draws, same parameters after three steps."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from helpers.runs import DATA, WORDS
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertModel

from advalign import Callback, Learner, Sampling, Trainer, TrainingArguments
from advalign.advantages.group import Group
from advalign.adversaries.pgd import PGD
from advalign.models import load
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.grpo import GRPO
from advalign.objectives.sft import SFT
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.sources.contrast import Contrast
from advalign.sources.demos import Demos
from advalign.sources.prompts import Prompts
from advalign.tasks.constraints import Constraints

EXAMPLE = Path(__file__).parents[2] / "examples" / "from_scratch_mixed_step.py"
STEPS, RATE = 3, 1e-3


def oracle():
    spec = importlib.util.spec_from_file_location("from_scratch_mixed_step", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_oracle_stands_alone_and_runs(capsys):
    assert "advalign" not in EXAMPLE.read_text().partition('"""\n')[2].replace("advalign.Trainer", "")
    oracle().main()
    assert len(capsys.readouterr().out.splitlines()) == 3


class Draws(Callback):
    """A callback that notes, after every step, what the sources had drawn, as text and sampled ids."""

    def __init__(self):
        self.seen = []

    def on_step(self, trainer, logs):
        items = trainer.context.items
        demos = [(e.prompt, e.meta["response"]) for e in items["chat"]]
        groups = [(g.prompt_ids, g.example.prompt, [(r.response_ids, r.text, r.finished) for r in g.rollouts]) for g in items["write"]]
        contrast = [(v.prompt, v.text, v.finished, v.kind == 0) for v in items["contrast"]]
        self.seen.append((demos, groups, contrast))


def trained(folder, draws):
    policy, discriminator = (
        Learner(model=str(folder / name), head=head, max_length=32, learning_rate=RATE, dtype="float64") for name, head in HEADS
    )
    trainer = Trainer(
        learners={"policy": policy, "discriminator": discriminator},
        sources={
            "chat": Demos(data=DATA, limit=20, batch_size=5),
            "write": Prompts(
                data=DATA,
                batch_size=3,
                group_size=4,
                sampling=Sampling(max_new_tokens=7),
                rewards=[DiscriminatorReward(learner="discriminator")],
                advantage=Group(scale="none"),
            ),
            "contrast": Contrast(real="chat", sampled="write", perturb=Constraints(), batch_size=4),
        },
        adversaries={"pgd": PGD(radius=0.1, steps=2, random_start=False)},
        objectives={
            "policy": GRPO(source="write"),
            "robust": SFT(source="chat", view="pgd", coef=0.5),
            "discriminator": Discriminate(source="contrast"),
        },
        # A small budget: the oracle sees whole batches, the engine several micro-batches.
        args=TrainingArguments(max_steps=STEPS, token_budget=60),
        callbacks=[draws],
    )
    return trainer, trainer.train(progress=False)


HEADS = (("policy", "policy"), ("discriminator", "score"))


def batch(module, words, demos, groups, contrast):
    """The draws of one step as the oracle's ids, made with the tokenizers alone."""

    def ids(text):
        return words["policy"](text)["input_ids"]

    def pair_ids(prompt, text, finished):
        row = words["discriminator"]([prompt], [text])["input_ids"][0]  # as a list: an empty text alone would be no second segment
        return row if finished else row[:-1]

    return module.Batch(
        demos=[(ids(prompt), [*ids(response), 2]) for prompt, response in demos],
        groups=[(prompt_ids, [response for response, _, _ in rollouts]) for prompt_ids, _, rollouts in groups],
        contrast=[(pair_ids(prompt, text, finished), int(real)) for prompt, text, finished, real in contrast],
        scored=[pair_ids(prompt, text, finished) for _, prompt, rollouts in groups for _, text, finished in rollouts],
    )


# Both sides are float64. GPT-2's LayerNorm is then float64, too. Llama's RMSNorm computes in float32 inside transformers,
# where a last bit that differs between two batch layouts is 6e-8 and AdamW's first steps, g / |g|, magnify it.
@pytest.mark.parametrize(("model", "tolerance"), [("scratch:tiny-gpt2?n_embd=32", 1e-11), ("scratch:tiny?hidden_size=32", 1e-6)])
def test_three_steps_end_at_the_oracles_parameters(tmp_path, double, model, tolerance):
    for spec, (name, head) in zip((model, "scratch:encoder-tiny?hidden_size=32"), HEADS, strict=True):
        network = load(spec, head=head, tokenizer=WORDS, texts=Constraints().vocabulary(), max_length=32, dtype="float64")
        network.save_pretrained(tmp_path / name)
    noted = Draws()
    trainer, history = trained(tmp_path, noted)

    module = oracle()
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy", dtype=torch.float64)
    discriminator = BertModel.from_pretrained(tmp_path / "discriminator", dtype=torch.float64)
    head = torch.nn.Linear(32, 1)
    head.load_state_dict(load_file(tmp_path / "discriminator" / "scalar_head.safetensors"))
    words = {name: AutoTokenizer.from_pretrained(tmp_path / name) for name, _ in HEADS}
    optimizers = [
        torch.optim.AdamW(policy.parameters(), lr=RATE, weight_decay=0.0),
        torch.optim.AdamW([*discriminator.parameters(), *head.parameters()], lr=RATE, weight_decay=0.0),
    ]
    start = {n: p.detach().clone() for n, p in policy.named_parameters()}
    for draws, logs in zip(noted.seen, history, strict=True):
        logged = module.step(policy, discriminator, head, optimizers, batch(module, words, *draws))
        assert logs["write/rewards/discriminator/mean"] == pytest.approx(logged["reward"], rel=tolerance, abs=tolerance)
        assert logs["discriminator/loss"] == pytest.approx(logged["discriminator"], rel=tolerance)

    expected = {"policy": policy, "discriminator": discriminator, "head": head}
    trained_modules = {
        "policy": trainer.learners["policy"].network.model,
        "discriminator": trainer.learners["discriminator"].network.model,
        "head": trainer.learners["discriminator"].network.scalar,
    }
    for name in expected:
        for (parameter, a), b in zip(expected[name].named_parameters(), trained_modules[name].parameters(), strict=True):
            assert float((a - b).detach().abs().max()) <= tolerance * float(a.detach().abs().max().clamp(min=RATE)), f"{name}.{parameter}"
    moved = max(float((p.detach() - start[n]).abs().max()) for n, p in policy.named_parameters())
    assert moved > RATE  # three AdamW steps of 1e-3
