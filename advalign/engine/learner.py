"""A learner: a model, an optimizer and one sum of objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from advalign.engine import micro as mb
from advalign.engine.plan import Plan
from advalign.engine.process_group import ProcessGroup
from advalign.engine.rng import seed_of
from advalign.engine.views import MetricAccumulator, UpdateContext
from advalign.errors import ConfigError
from advalign.models import ModelSpec, Network, sharding
from advalign.models.sharding import Sharding
from advalign.models.sharing import frozen_copy
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
    """A started learner. `version` counts its updates; rewards are with_version with it."""

    def __init__(
        self,
        name: str,
        config: Learner,
        network: Network,
        accelerator: Accelerator,
        total_steps: int,
        shards: Sharding | None = None,
    ) -> None:
        from transformers.optimization import get_scheduler  # takes seconds, and loads peft

        self.name, self.config, self.network, self.accelerator = name, config, network, accelerator
        _ = network.packs  # tried out now: a sharded network cannot be called past its root
        self.ranks = ProcessGroup(accelerator)
        self.ranks.copy_weights(network)
        self.shards, self.template = shards, sharding.empty_like(network) if shards is not None else None
        if shards is not None:
            sharding.check_shardable(name, network)
            shards.shard(network)
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.scheduler = get_scheduler(
            config.lr_scheduler_type, self.optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=total_steps
        )
        # Precision alone: gradients of several processes are summed here, once per update, or by the shards.
        self.wrapped: Any = network if shards is not None else accelerator.prepare_model(network, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.version = 0
        self.memory: dict[str, dict[str, Any]] = {}  # of adversaries, by name
        self._known: dict[str, dict[str, Any]] = {}  # what all processes hold of what they keep by row

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
        """One optimizer update on one minibatch of rows, {source: Rows}; micro-batches within `budget` tokens. Every process is given
        all rows and runs its share of them. Without `train` the rows are read and reported, and nothing moves.

        `measure` also returns the gradient norm of every term and the cosines between them, at the price of one backward
        per term."""
        sums = MetricAccumulator()
        self.network.train()
        # Dropout draws from the global state: keyed by the update, so that a resumed run draws the same masks.
        alone = self.ranks.number == 1
        torch.manual_seed(seed_of(*key, "dropout") if alone else seed_of(*key, "dropout", self.ranks.index))
        run = UpdateContext(
            network=self.wrapped,
            plan=plan,
            frozen=frozen,
            weights=_weights(plan, rows),
            sizes={s: r.tokens.ids.shape[0] for s, r in rows.items()},
            key=key,
            sums=sums,
            memory=self.memory,
        )
        gradients = Gradients(self.network, self.ranks.sum) if measure else None
        self._note_known(plan)
        self.optimizer.zero_grad(set_to_none=True)
        with self._whole_root():
            for micro, idle in self._share(plan, rows, budget):
                self._micro(replace(run, idle=idle), micro, rows, gradients, train)
        if not train:
            return self._over_ranks(sums).report()
        self._end_update(plan)
        if self.shards is None:
            self.ranks.sum_gradients([p for p in self.network.parameters() if p.requires_grad])
        norm = sharding.full_tensor(self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm))
        self.optimizer.step()
        self.version += 1
        logs = self._over_ranks(sums).report()
        logs |= {f"{a}/gain": logs[f"{a}/loss_end"] - logs[f"{a}/loss_start"] for a in plan.adversaries if f"{a}/loss_start" in logs}
        logs |= gradients.summary() if gradients is not None else {}
        return logs | {f"{self.name}/grad_norm": float(norm), f"{self.name}/learning_rate": self.optimizer.param_groups[0]["lr"]}

    @contextmanager
    def _whole_root(self) -> Iterator[None]:
        """Inside an update the sharded network's embedding and heads are whole (`models/sharding.py`)."""
        if self.shards is None:
            yield
            return
        root: Any = self.network
        self.network.forget_norm()
        root.unshard()
        yield
        root.reshard()

    def frozen(self, *, moving: bool) -> Network:
        """A copy that never trains."""
        if self.shards is None:
            return frozen_copy(self.network, moving=moving)
        assert self.template is not None
        return self.shards.clone(self.template, self.network).eval().requires_grad_(False)

    def whole(self) -> Network | None:
        """The network, on the main process alone where it is sharded; every process has to ask."""
        return self.network if self.template is None else sharding.gather_on_host(self.network, self.template, self.ranks.main)

    def _share(self, plan: Plan, rows: Mapping[str, Any], budget: int) -> list[tuple[mb.Micro, frozenset[str]]]:
        """The micro-batches of this process, and the sources whose rows are idle in them. Everybody deals the same hands."""
        whole = _whole_groups(plan)
        layout = mb.BatchLayout(self.network.packs and not plan.needs_input_gradients, _unedited(plan))
        hands = mb.partition(rows, budget, whole_groups=whole, layout=layout, parts=self.ranks.number)
        # What an adversary keeps must begin on every process, whatever rows it was dealt; and forwards of shards wait for each other.
        if self.ranks.number > 1 and (self.shards is not None or any(a.memory_scope != "none" for a in plan.adversaries.values())):
            return mb.pad_to_equal_count(hands, rows, whole_groups=whole)[self.ranks.index]
        return [(micro, frozenset()) for micro in hands[self.ranks.index]]

    def _micro(self, run: UpdateContext, micro: mb.Micro, rows: Mapping[str, Any], gradients: Gradients | None, train: bool) -> None:
        width = max(int(rows[s].tokens.lengths[numbers].max()) for s, numbers in micro.items())
        here = {s: mb.cut(rows[s], numbers, width).to(self.network.device) for s, numbers in micro.items()}
        here |= {s: mb.mask_row_keys(here[s]) for s in run.idle}
        for component in run.plan.components:
            for losses, again in run.passes(micro, here, component):
                if not train:
                    continue
                if gradients is not None:
                    gradients.add(losses)
                # Weights carry the counts of the whole update, so gradients of processes are summed.
                self.accelerator.backward(sum(losses.values()), retain_graph=again)

    def _note_known(self, plan: Plan) -> None:
        for name, adversary in plan.adversaries.items():
            if adversary.memory_scope == "rows" and name not in self._known:
                self._known[name] = dict(adversary.row_memory(self.memory.setdefault(name, {})))

    def _end_update(self, plan: Plan) -> None:
        """Adversaries after the last micro-batch: what each process has noted of its rows is united first."""
        for name, adversary in plan.adversaries.items():
            memory = self.memory.setdefault(name, {})
            if self.ranks.number > 1 and adversary.memory_scope == "rows":
                kept, known = adversary.row_memory(memory), self._known[name]
                news = {place: sites for place, sites in kept.items() if known.get(place) is not sites}
                for place in news:
                    del kept[place]
                sent = {f"{place}\t{site}": x for place, sites in news.items() for site, x in sites.items() if mb.has_row_key(place)}
                for found in self.ranks.tensors(sent):
                    for both, x in found.items():
                        place, _, site = both.partition("\t")
                        kept.setdefault(place, {})[site] = x
                self._known[name] = dict(kept)
            adversary.end_update(memory, self.ranks.sum)

    def _over_ranks(self, sums: MetricAccumulator) -> MetricAccumulator:
        """MetricAccumulator of all processes. A metric may exist on some of them only, so names travel too."""
        if self.ranks.number == 1:
            return sums
        found = MetricAccumulator()
        for totals, weighted in self.ranks.plain([sums.totals, sums.weighted]):
            for name, value in totals.items():
                found.total(name, value)
            for name, (value, weight) in weighted.items():
                found.mean(name, value, weight)
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
        self.memory, self._known = state.get("memory", {}), {}


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


def _weights(plan: Plan, rows: Mapping[str, Any]) -> dict[str, Weights]:
    named = dict(plan.terms) | {f"{view}.inner": a.inner for view, a in plan.adversaries.items() if a.inner is not None}
    return {name: term.weights(rows[term.source]) for name, term in named.items() if term.source in rows}


def _whole_groups(plan: Plan) -> frozenset[str]:
    shared = {s for view, a in plan.adversaries.items() if a.threat.share == "group" for s in plan.readers(view)}
    return frozenset(shared | {t.source for t in plan.terms.values() if t.bundle == "group"})
