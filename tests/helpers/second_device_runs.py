"""Runs everything on the second device (`second_device.py`) and on the CPU, and measures the distance of the results.

python -m helpers.second_device_runs folder        writes folder/distances.json: {case: distance, or the error as text}
"""

import copy
import json
import random
import sys
import tempfile
import traceback
import warnings
from functools import cache
from pathlib import Path

import torch
from helpers import objectives, two_process_runs, victims
from helpers.attacks import REQUIRED
from helpers.runs import DATA, discriminator, policy, write
from helpers.second_device import DEVICE, accelerated

from advalign import Frozen, Learner, Trainer, TrainingArguments, plugins
from advalign import adversaries as adv
from advalign.evaluation.selfcheck import selfcheck
from advalign.evaluation.suites import certified
from advalign.objectives.classify import Classify
from advalign.objectives.consistency import Consistency
from advalign.objectives.discriminate import Discriminate
from advalign.objectives.gradient_penalty import GradientPenalty
from advalign.objectives.grpo import GRPO
from advalign.objectives.kl import KL
from advalign.objectives.mart import MART
from advalign.objectives.sft import SFT
from advalign.rewards.discriminator import Discriminator as DiscriminatorReward
from advalign.rollout.hf import HF
from advalign.sources.labels import Labels
from advalign.targets import target_of
from advalign.tasks.constraints import Constraints
from advalign.training.discriminator_evaluation import DiscriminatorEvaluation, DiscriminatorProbe
from advalign.types import Budget

EXCLUDED = ("textattack",)  # an adapter around another library's models


def lora(**sections):
    """Policy, reference and discriminator over one base; R1 on the discriminator, which is measured as it learns."""
    probe = DiscriminatorProbe(learning_rate=1e-2, steps=2)
    adapted = {"lora": {"r": 2, "target_modules": "all-linear"}, "gradient_checkpointing": True}
    return two_process_runs.mixed(
        learners={
            "policy": policy(options=adapted, minibatches=2),
            "discriminator": discriminator(model="learner:policy", tokenizer=None, options={"lora": adapted["lora"]}),
        },
        sources={
            "chat": two_process_runs.chat(),
            "write": write(rewards=[DiscriminatorReward(learner="discriminator", form="neg_log_one_minus")]),
            "contrast": two_process_runs.game().config["sources"]["contrast"],
        },
        objectives={
            "policy": GRPO(source="write"),
            "near": KL(source="write", coef=0.1),
            "robust": SFT(source="chat", view="pgd", coef=0.5),
            "discriminator": Discriminate(source="contrast"),
            "r1": GradientPenalty(source="contrast", learner="discriminator", coef=0.1, every=1),
        },
        frozen={"reference": Frozen()},
        evaluations={
            "judged": DiscriminatorEvaluation(
                data=DATA, perturb=Constraints(), sampler="policy", learner="discriminator", number=6, probe=probe
            )
        },
        **sections,
    )


@cache
def lexicon():
    file = Path(tempfile.mkdtemp()) / "lexicon.json"
    file.write_text(json.dumps({good: list(victims.GOOD) for good in victims.GOOD}))
    return str(file)


def classifier(**sections):
    """Words and embeddings attacked together, words masked, VAT against an average; dropout that is the same in all passes."""
    rows = [{"text": e.prompt, "label": e.label} for e in victims.sentences(24)]
    options = {"num_labels": 2, "dropout": 0.1}
    small = {"model": "scratch:encoder-tiny?hidden_size=32", "head": "classifier", "max_length": 32, "dtype": "float64"}
    return Trainer(
        learners={"policy": Learner(**small, tokenizer={"kind": "words", "data": rows}, options=options)},
        sources={"rows": Labels(data=rows, batch_size=8)},
        adversaries={
            "both": adv.Mixed(discrete=adv.Synonyms(lexicon=lexicon(), budget=0.5), continuous=adv.PGD(radius=0.1, steps=2)),
            "masked": adv.Mask(rate=0.3, replace="unknown"),
            "sync": adv.PGD(radius=0.1, steps=2, dropout="sync"),
            "vat": adv.VAT(radius=0.1),
        },
        objectives={
            "both": Classify(source="rows", view="both"),
            "masked": Classify(source="rows", view="masked"),
            "trades": Consistency(source="rows", view="sync"),
            "vat": Consistency(source="rows", view="vat", against="mean"),
            "mart": MART(source="rows", view="sync"),
        },
        frozen={"mean": Frozen(ema=0.9)},
        **sections,
    )


def to_cpu(state):
    return torch.cat([p.detach().cpu().double().flatten() for p in state])


def distance(a, b):
    """Largest difference; texts and numbers must be the same."""
    if isinstance(a, torch.Tensor):
        return float((a.cpu() - b.cpu()).abs().max()) if a.numel() else 0.0
    if isinstance(a, float):
        return abs(a - b)
    if isinstance(a, dict):
        return max((distance(a[k], b[k]) for k in a), default=0.0)
    if isinstance(a, list | tuple):
        return max((distance(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    return 0.0 if a == b else float("inf")


def whole_run(name, folder):
    """Steps, a checkpoint, and steps after it in another trainer; weights and texts."""
    results = []
    for second in (False, True):
        with accelerated(second):
            path = folder / f"{name}-{second}"
            two_process_runs.trained(name, path)
            trainer, _, texts = two_process_runs.trained(name, path, steps=4, resume=True)
            assert {p.device.type for r in trainer.learners.values() for p in r.network.parameters()} == {"second" if second else "cpu"}
            results.append((to_cpu(p for r in trainer.learners.values() for p in r.network.parameters()), texts))
    return distance(*results)


def adversary(name, folder):
    """Three updates under an adversary with memory between them."""
    results, before = [], two_process_runs.LearnerRuntime
    for second in (False, True):
        with accelerated(second):
            two_process_runs.LearnerRuntime = lambda n, config, net, accelerator, *arguments: before(
                n, config, net.to(accelerator.device), accelerator, *arguments
            )
            try:
                results.append(to_cpu(two_process_runs.updated(name, folder)[0].values()))
            finally:
                two_process_runs.LearnerRuntime = before
    return distance(*results)


def objective(config):
    """Its loss and its gradients."""
    results, head = [], objectives.HEAD
    for device in (torch.device("cpu"), DEVICE):
        leaves = {k: x.detach().to(device).requires_grad_() for k, x in objectives.outputs(config)[1].items()}
        objectives.HEAD = head.to(device)
        try:
            loss = objectives.total(config, objectives.build(config).to(device), objectives.views(leaves))
            loss.backward() if loss.requires_grad else None
        finally:
            objectives.HEAD = head
        results.append([loss.detach(), *(x.grad for x in leaves.values() if x.grad is not None)])
    return distance(*results)


def both(network):
    """The network on the CPU, and a copy of it on the second device."""
    return network, copy.deepcopy(network).to(DEVICE)


def attack(cls):
    """Its proposals against a trained model."""
    against_policy = cls.head == "policy"
    results = []
    for network in both(victims.generator_model() if against_policy else victims.classifier()):
        search = cls(**REQUIRED.get(plugins.kind_of(cls), dict)())
        examples = victims.sums()[:3] if against_policy else victims.sentences(3)
        proposals = search.propose(target_of(network), examples, Budget(queries=30), random.Random(0))
        results.append([[p.text, p.note, p.attempts, p.forced, edits_on_cpu(p.edits)] for p in proposals])
    return distance(*results)


def edits_on_cpu(edits):
    return {site: x.detach().cpu() for site, x in (edits or {}).items()}


def self_checks(_):
    results = []
    for network in both(victims.classifier()):
        results.append([[c.name, c.status] for c in selfcheck.run(target_of(network), victims.sentences(8), steps=3)])
    return distance(*results)


def certificates(_):
    kinds = {
        "smoothing": certified.Smoothing(sigma=0.1, n0=4, n=20),
        "ranmask": certified.Masking(rate=0.3, n0=4, n=20, replace="unknown"),
    }
    results = [certified.run(kinds, network, victims.sentences(3)) for network in both(victims.classifier())]
    return distance(*([repr(row) for rows in result.values() for row in rows] for result in results))


def ahead(_):
    """Rollouts of a copy, in the background, while the policy trains."""
    results = []
    for second in (False, True):
        with accelerated(second):
            sources = {**two_process_runs.game().config["sources"], "write": write(ahead=1)}
            trainer = two_process_runs.game(sources=sources, args=TrainingArguments(max_steps=3), rollout=HF(max_rows=7))
            trainer.train(progress=False)
            results.append(to_cpu(trainer.learners["policy"].network.parameters()))
    return distance(*results)


def refusals(_):
    """What a GPU refuses; a device that allowed it would prove nothing."""
    x = torch.ones(2, device=DEVICE)
    for wrong in (
        lambda: x + torch.ones(2),
        lambda: torch.ones(2)[x.long()],
        lambda: torch.rand(2, generator=torch.Generator(), device=DEVICE),
        lambda: torch.nn.functional.embedding(torch.zeros(2, dtype=torch.long), x[:, None]),
        lambda: x.detach().numpy(),
    ):
        try:
            wrong()
        except (RuntimeError, TypeError):
            continue
        raise AssertionError("tensors of two devices met")
    return float((x + 1.0 + torch.tensor(1.0))[torch.tensor([0])].cpu().sum() - 3)


def cases(folder):
    """{name: (function, its arguments)}"""
    two_process_runs.RUNS |= {"lora": lora, "classifier": classifier}
    table = {f"run {name}": (whole_run, name, folder) for name in two_process_runs.RUNS}
    table |= {f"adversary {name}": (adversary, name, folder) for name in two_process_runs.UPDATES}
    table |= {f"objective {i} {plugins.kind_of(type(config))}": (objective, config) for i, config in enumerate(objectives.TABLE)}
    kinds = {plugins.kind_of(cls): cls for cls in plugins.all("attacks")}
    table |= {f"attack {kind}": (attack, cls) for kind, cls in kinds.items() if kind not in EXCLUDED}
    table |= {"other self-checks": (self_checks, None), "other certificates": (certificates, None), "other rollouts ahead": (ahead, None)}
    return table | {"refusals": (refusals, None)}


def main(folder):
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    distances = {}
    for name, (run, *arguments) in cases(folder).items():
        try:
            distances[name] = run(*arguments)
        except Exception as error:
            lines = [line.strip() for line in traceback.format_exc().splitlines() if "advalign/" in line]
            distances[name] = f"{type(error).__name__}: {str(error)[:300]} at {lines[-2:]}"
    (folder / "distances.json").write_text(json.dumps(distances))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
