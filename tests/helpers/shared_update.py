"""Two processes that share the rows of one ragged update. Not in a test file: a fresh interpreter must import it by name."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from helpers.gloo import WORLD, meet
from helpers.networks import demos, gradients, learner, network, rollouts
from safetensors.torch import save_file

from advalign.adversaries.pgd import PGD
from advalign.engine.micro import partition, split_groups
from advalign.engine.plan import plan
from advalign.objectives.kl import KL
from advalign.objectives.ppo import PPO
from advalign.objectives.sft import SFT
from advalign.types import Losses

PLAIN = {"policy": PPO(source="math"), "near": KL(source="math", coef=0.1), "imitate": SFT(source="chat", coef=0.5)}
ATTACKED = PLAIN | {"robust": SFT(source="chat", view="pgd", coef=0.3), "hard": PPO(source="math", view="pgd2", coef=0.2)}
PGDS = {"pgd": PGD(radius=0.3, steps=2), "pgd2": PGD(radius=0.2, steps=1)}


@dataclass(frozen=True)
class Case:
    """A budget in tokens splits the rows of every rank into micro-batches. `demos`: so many demonstrations and no rollouts."""

    objectives: dict
    budget: int
    measure: bool = False
    demos: int | None = None


CASES = {
    "one micro-batch each": Case(PLAIN, 10_000, measure=True),
    "two each": Case(PLAIN, 40),
    "one and none": Case(PLAIN, 10_000, demos=1),
    "two and one": Case(PLAIN, 12, demos=3),
    "views on some micro-batches": Case(ATTACKED, 12),
}


def local_rows(net, case: Case, rank: int | None = None):
    """Half of the groups; all of them without a rank. Of five rollouts in two groups the first has twice the tokens of the second."""
    rows = {"math": rollouts(net).index(torch.tensor([0, 1, 2, 3, 5])), "chat": demos(net)}
    if case.demos is not None:
        rows = {"chat": rows["chat"].index(torch.arange(case.demos))}
    return rows if rank is None else {s: r.index(split_groups(r, WORLD)[rank]) for s, r in rows.items()}


def num_micros(case: Case) -> tuple[int, ...]:
    return tuple(map(len, partition(local_rows(network(), case), case.budget, parts=WORLD)))


def update(case: Case, rank: int | None = None) -> tuple[torch.Tensor, dict[str, float]]:
    """(gradient, logs) of one update that moves nothing."""
    torch.manual_seed(0)
    net = network()
    runtime = learner(net)
    planned = plan("policy", case.objectives, PGDS, [])
    logs = runtime.update(planned, local_rows(net, case, rank), {}, budget=case.budget, key=("update",), measure=case.measure)
    return gradients(net), logs


class SpoiledRow(SFT):
    """SFT of which one row, that one process alone has, has losses or gradients of nan."""

    bad = "loss"

    def losses(self, rows, views):
        result = super().losses(rows, views)
        spoiled = (rows.tokens.key == 1)[:, None].expand_as(result.values)
        if self.bad == "loss":
            return Losses(torch.where(spoiled, torch.nan, result.values), result.metrics)
        zero = (result.values.detach() - result.values).clamp(min=0).sqrt() * 0
        return Losses(torch.where(spoiled, result.values + zero, result.values), result.metrics)


def skipped(bad: str) -> dict:
    """Two updates, of which the first has a row that is not finite; what was decided, and the sum of the weights."""
    SpoiledRow.bad = bad
    net = network()
    runtime = learner(net, learning_rate=1e-2)
    decisions = []
    for objective in (SpoiledRow(source="chat"), SFT(source="chat")):
        before = [p.detach().clone() for p in net.parameters()]
        runtime.update(plan("policy", {"imitate": objective}, {}, []), {"chat": demos(net)}, {}, budget=12, key=("update",))
        moved = any(not torch.equal(p, old) for p, old in zip(net.parameters(), before, strict=True))
        decisions.append([runtime.version, runtime.guard.skipped_in_a_row, moved, runtime.guard.take_logs()])
    return {"decisions": decisions, "weights": sum(float(p.detach().sum()) for p in net.parameters())}


def run(rank: int, folder: str) -> None:
    """What a spawned process does: every case, its gradient and logs into files; the reason where gloo cannot start."""
    if not meet(rank, folder):
        return
    for name, case in CASES.items():
        gradient, logs = update(case)
        save_file({"gradient": gradient}, f"{folder}/{name}-{rank}.safetensors")
        Path(folder, f"{name}-{rank}.json").write_text(json.dumps(logs))
    for bad in ("loss", "gradient"):
        Path(folder, f"skipped-{bad}-{rank}.json").write_text(json.dumps(skipped(bad)))
    torch.distributed.destroy_process_group()
