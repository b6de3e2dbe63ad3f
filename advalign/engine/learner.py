"""A learner: a model, an optimizer and one sum of objectives."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import get_scheduler

from advalign.engine import micro as mb
from advalign.engine.keys import seed_of
from advalign.engine.plan import Plan
from advalign.engine.views import Run, Sums
from advalign.errors import ConfigError
from advalign.models import ModelSpec, Network
from advalign.types import Weights


@dataclass(frozen=True, kw_only=True)
class Learner(ModelSpec):
    """A model and how it is trained. `updates`: draws of its own sources per training step (a discriminator's n_d);
    every draw is split, groups whole, into `minibatches`, repeated `epochs` times, each one optimizer update.
    `every`: it takes part in every so many steps of a stage only (n_g policy steps per discriminator step)."""

    learning_rate: float = 1e-5
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    lr_scheduler_type: str = "constant"
    warmup_steps: int = 0
    updates: int = 1
    minibatches: int = 1
    epochs: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        for name in ("updates", "minibatches", "epochs", "every"):
            if getattr(self, name) < 1 and not (name == "updates" and self.updates == 0):
                raise ConfigError(f"learners: {name} is {getattr(self, name)}; it must be at least 1.")
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ConfigError("learners: lr_scheduler_type 'constant' has no warm-up; use 'constant_with_warmup', or warmup_steps 0.")


class LearnerRuntime:
    """A started learner. `version` counts its updates; rewards are stamped with it."""

    def __init__(self, name: str, config: Learner, network: Network, accelerator: Accelerator, total_steps: int) -> None:
        self.name, self.config, self.network, self.accelerator = name, config, network, accelerator
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.scheduler = get_scheduler(
            config.lr_scheduler_type, self.optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=total_steps
        )
        self.wrapped: Any = accelerator.prepare_model(network)
        self.optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.version = 0
        self.memory: dict[str, dict[str, Any]] = {}  # of adversaries, by name

    def update(
        self,
        plan: Plan,
        rows: Mapping[str, Any],
        frozen: Mapping[str, Network],
        *,
        budget: int,
        key: tuple[object, ...],
        measure: bool = False,
        train: bool = True,
    ) -> dict[str, float]:
        """One optimizer update on one minibatch of rows, {source: Rows}; micro-batches within `budget` tokens. Without `train` the
        rows are read and reported, and nothing moves.

        `measure` also returns the gradient norm of every term and the cosines between them, at the price of one backward
        per term."""
        sums = Sums()
        self.network.train()
        # Dropout draws from the global state: keyed by the update, so that a resumed run draws the same masks.
        torch.manual_seed(seed_of(*key, "dropout"))
        run = Run(
            network=self.wrapped,
            plan=plan,
            frozen=frozen,
            weights=self._weights(plan, rows),
            sizes={s: r.tokens.ids.shape[0] for s, r in rows.items()},
            key=key,
            sums=sums,
            memory=self.memory,
        )
        gradients = Gradients(self.network, self._sum_over_ranks) if measure else None
        self.optimizer.zero_grad(set_to_none=True)
        with self.wrapped.no_sync() if isinstance(self.wrapped, DistributedDataParallel) else nullcontext():
            packing = self.network.packs and not plan.needs_slopes
            for micro in mb.pack(rows, budget, whole_groups=_whole_groups(plan), packed=packing, shared=_unedited(plan)):
                self._micro(run, micro, rows, gradients, train)
        if not train:
            return self._over_ranks(sums).report()
        for name, adversary in plan.adversaries.items():
            if hasattr(adversary, "settle"):
                adversary.settle(self.memory.setdefault(name, {}), self._sum_over_ranks)
        self._average_gradients()
        norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.version += 1
        logs = self._over_ranks(sums).report()
        logs |= {f"{a}/gain": logs[f"{a}/loss_end"] - logs[f"{a}/loss_start"] for a in plan.adversaries if f"{a}/loss_start" in logs}
        logs |= gradients.summary() if gradients is not None else {}
        return logs | {f"{self.name}/grad_norm": float(norm), f"{self.name}/learning_rate": self.optimizer.param_groups[0]["lr"]}

    def _micro(self, run: Run, micro: mb.Micro, rows: Mapping[str, Any], gradients: Gradients | None, train: bool) -> None:
        width = max(int(rows[s].tokens.lengths[numbers].max()) for s, numbers in micro.items())
        here = {s: mb.cut(rows[s], numbers, width).to(self.network.device) for s, numbers in micro.items()}
        for component in run.plan.components:
            for losses, again in run.passes(micro, here, component):
                if not train:
                    continue
                if gradients is not None:
                    gradients.add(losses)
                # Data parallelism averages gradients over ranks; weights carry global counts, so the sum is what is wanted.
                self.accelerator.backward(sum(losses.values()) * self.accelerator.num_processes, retain_graph=again)

    def _average_gradients(self) -> None:
        """Data parallelism by hand, once per update: ranks may have different numbers of micro-batches, and a micro-batch rows of
        some components only, so a reduction in every backward would wait for one that never comes."""
        if not isinstance(self.wrapped, DistributedDataParallel):
            return
        trained = [p for p in self.network.parameters() if p.requires_grad]
        used = self._sum_over_ranks(torch.tensor([float(p.grad is not None) for p in trained], device=self.network.device))
        for p, ranks in zip(trained, used.tolist(), strict=True):
            if ranks:
                p.grad = self.accelerator.reduce(torch.zeros_like(p) if p.grad is None else p.grad, reduction="mean")

    def _sum_over_ranks(self, x: Tensor) -> Tensor:
        return self.accelerator.reduce(x, reduction="sum")

    def _over_ranks(self, sums: Sums) -> Sums:
        """Sums of all ranks. A metric may exist on some of them only, so names travel too, as bytes padded with spaces."""
        if self.accelerator.num_processes == 1:
            return sums
        text = json.dumps([sums.totals, sums.weighted]).encode()
        here = torch.tensor(list(text), dtype=torch.uint8, device=self.network.device)
        found = Sums()
        for row in self.accelerator.gather(self.accelerator.pad_across_processes(here, pad_index=ord(" "))[None]).tolist():
            totals, weighted = json.loads(bytes(row))
            for name, value in totals.items():
                found.total(name, value)
            for name, (value, weight) in weighted.items():
                found.mean(name, value, weight)
        return found

    def _weights(self, plan: Plan, rows: Mapping[str, Any]) -> dict[str, Weights]:
        named = dict(plan.terms) | {f"{view}.inner": a.inner for view, a in plan.adversaries.items() if a.inner is not None}
        found = {}
        for name, term in named.items():
            if term.source in rows:
                weights = term.weights(rows[term.source])
                found[name] = Weights(weights.values, self._sum_over_ranks(weights.count))
        return found

    def set_learning_rate(self, base: float) -> None:
        """A stage or a schedule may move the base rate; the scheduler's factor stays."""
        for group, factor, i in zip(
            self.optimizer.param_groups, self.scheduler.lr_lambdas, range(len(self.scheduler.base_lrs)), strict=True
        ):
            if self.scheduler.base_lrs[i] != base:
                self.scheduler.base_lrs[i] = base
                group["lr"] = base * factor(self.scheduler.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "version": self.version,
            "memory": self.memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.version = int(state["version"])
        self.memory = state.get("memory", {})


class Gradients:
    """What each term pulls at: gradient norms and cosines, of a whole update, `total` over ranks."""

    def __init__(self, network: Network, total: Callable[[Tensor], Tensor]) -> None:
        self.total = total
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.by_term: dict[str, list[Tensor]] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        for name, loss in losses.items():
            found = torch.autograd.grad(loss, self.parameters, retain_graph=True, allow_unused=True)
            dense = [torch.zeros_like(p) if g is None else g.detach() for g, p in zip(found, self.parameters, strict=True)]
            known = self.by_term.get(name)
            self.by_term[name] = dense if known is None else [a + b for a, b in zip(known, dense, strict=True)]

    def summary(self) -> dict[str, float]:
        names = sorted(self.by_term)
        flat = {name: self.total(torch.cat([g.flatten() for g in self.by_term[name]])) for name in names}
        logs = {f"{name}/gradient_norm": float(g.norm()) for name, g in flat.items()}
        for i, first in enumerate(names):
            for second in names[i + 1 :]:
                logs[f"cosine/{first}~{second}"] = float(torch.nn.functional.cosine_similarity(flat[first], flat[second], dim=0))
        return logs


def _unedited(plan: Plan) -> frozenset[str]:
    """Sources whose rows no adversary edits: what their rows have in common is run once."""
    return frozenset(plan.sources) - {s for view in plan.adversaries for s in plan.readers(view)}


def _whole_groups(plan: Plan) -> frozenset[str]:
    shared = {s for view, a in plan.adversaries.items() if a.threat.share == "group" for s in plan.readers(view)}
    return frozenset(shared | {t.source for t in plan.terms.values() if t.bundle == "group"})
