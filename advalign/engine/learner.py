"""A learner: a model, an optimizer and one sum of objectives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator

from advalign.engine import micro as mb
from advalign.engine.gradients import ObjectiveGradients
from advalign.engine.metrics import MetricAccumulator
from advalign.engine.plan import Plan
from advalign.engine.process_group import ProcessGroup
from advalign.engine.removals import remaining_tokens, weights_of
from advalign.engine.rng import seed_of
from advalign.engine.views import UpdateContext
from advalign.errors import ConfigError
from advalign.interfaces import Adversary
from advalign.interfaces.adversary import Memory
from advalign.models import ModelSpec, Network, sharding
from advalign.models.sharding import Sharding
from advalign.models.sharing import frozen_copy
from advalign.types import TokenRows


@dataclass(frozen=True, kw_only=True)
class Learner(ModelSpec):
    """A model and how it is trained. Every draw of its sources is split into `minibatches`, `epochs` times: one optimizer update each."""

    learning_rate: float = 1e-5
    """Base rate of AdamW."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this L2 norm; 0: they are not clipped, as in transformers."""
    lr_scheduler_type: str = "constant"
    """Name of a transformers scheduler."""
    warmup_steps: int = 0
    """Training steps of linear warm-up."""
    updates: int = 1
    """Draws of its own sources per training step (n_d of a discriminator); 0: it only reads."""
    minibatches: int = 1
    """Parts of a draw, groups whole."""
    epochs: int = 1
    """Passes over a draw."""
    every: int = 1
    """It takes part in every so many steps of a stage (n_g policy steps per discriminator step)."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("updates", self.updates, 0),
            ("minibatches", self.minibatches, 1),
            ("epochs", self.epochs, 1),
            ("every", self.every, 1),
        ):
            if value < least:
                raise ConfigError(f"learners: {name} is {value}; it must be at least {least}.")
        if not self.max_grad_norm >= 0:
            raise ConfigError(f"learners: max_grad_norm is {self.max_grad_norm}; it must be above 0, or 0 for no clipping.")
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ConfigError("learners: lr_scheduler_type 'constant' has no warm-up; use 'constant_with_warmup', or warmup_steps 0.")


class LearnerRuntime:
    """A started learner. `version` counts its updates."""

    def __init__(
        self,
        name: str,
        config: Learner,
        network: Network,
        accelerator: Accelerator,
        total_steps: int,
        shards: Sharding | None = None,
    ) -> None:
        from transformers.optimization import get_scheduler  # takes seconds to import, and loads peft

        self.name, self.config, self.network, self.accelerator = name, config, network, accelerator
        # Tried out now: a sharded network cannot be called past its root.
        _ = network.packs, network.head == "policy" and network.caches
        self.processes = ProcessGroup.launched(accelerator)
        self.processes.broadcast_weights(network)
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
        self.autocast_network: Network = network if shards is not None else accelerator.prepare_model(network, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.max_grad_norm = config.max_grad_norm
        """The bound of the current step; 0: none."""
        self.version = 0
        self.memory: dict[str, Memory] = {}
        """{adversary: what it keeps between updates}"""
        self._row_memory: dict[str, dict[str, Any]] = {}
        """{adversary: the row memory that all processes share}"""

    def update(
        self,
        plan: Plan,
        rows: Mapping[str, TokenRows],
        frozen: Mapping[str, Network],
        *,
        budget: int,
        key: tuple[object, ...],
        measure: bool = False,
        train: bool = True,
    ) -> dict[str, float]:
        """One optimizer update on one minibatch {source: rows}, in micro-batches within `budget` tokens; returns its metrics.

        Every process is given all rows and runs its part of them. Without `train`, rows are read and reported, and nothing moves.
        `measure` adds the gradient norm of every objective and the cosines between them, at the price of one backward per objective.
        """
        metrics = MetricAccumulator()
        self.network.train()
        self._seed_dropout(key)
        gradients = ObjectiveGradients(self.network, self.processes.all_reduce) if measure else None
        self._note_row_memory(plan)
        self.optimizer.zero_grad(set_to_none=True)
        with self._unsharded_root():
            context = self._context(plan, rows, frozen, key, metrics)
            for micro, idle in self._micro_batches(plan, rows, budget):
                self._backward(replace(context, idle=idle), micro, rows, gradients, train)
        if not train:
            return metrics.all_reduce(self.processes).report()
        norm = self._step(plan)
        logs = metrics.all_reduce(self.processes).report()
        logs |= {f"{a}/gain": logs[f"{a}/loss_end"] - logs[f"{a}/loss_start"] for a in plan.adversaries if f"{a}/loss_start" in logs}
        logs |= gradients.summary() if gradients is not None else {}
        return logs | {f"{self.name}/grad_norm": norm, f"{self.name}/learning_rate": self.optimizer.param_groups[0]["lr"]}

    # ---------------------------------------------------------------------------------------- parts of an update

    def _context(
        self,
        plan: Plan,
        rows: Mapping[str, TokenRows],
        frozen: Mapping[str, Network],
        key: tuple[object, ...],
        metrics: MetricAccumulator,
    ) -> UpdateContext:
        remaining = remaining_tokens(self.autocast_network, plan, rows, key)
        return UpdateContext(
            network=self.autocast_network,
            plan=plan,
            frozen=frozen,
            weights=weights_of(plan, rows, remaining),
            remaining=remaining,
            num_rows={s: r.tokens.ids.shape[0] for s, r in rows.items()},
            key=key,
            metrics=metrics,
            memory=self.memory,
        )

    def _seed_dropout(self, key: tuple[object, ...]) -> None:
        """Dropout draws from the global state: keyed by the update, so that a resumed run draws the same masks."""
        alone = self.processes.world_size == 1
        torch.manual_seed(seed_of(*key, "dropout") if alone else seed_of(*key, "dropout", self.processes.rank))

    @contextmanager
    def _unsharded_root(self) -> Iterator[None]:
        """Inside an update the sharded network's embedding and heads are whole (`models/sharding.py`)."""
        if self.shards is None:
            yield
            return
        root: Any = self.network
        self.network.forget_norm()
        root.unshard()
        yield
        root.reshard()

    def _micro_batches(self, plan: Plan, rows: Mapping[str, TokenRows], budget: int) -> list[tuple[mb.Micro, frozenset[str]]]:
        """(micro-batch, sources whose rows are idle in it) of this process. All ranks compute the same partition."""
        whole_groups = _whole_groups(plan)
        layout = mb.BatchLayout(self.network.packs and not plan.needs_input_gradients, _unedited(plan))
        processes = self.processes
        per_rank = mb.partition(rows, budget, whole_groups=whole_groups, layout=layout, parts=processes.world_size)
        # The memory of an adversary must begin on every process, whatever its rows; and forwards of shards wait for each other.
        keeps = any(a.memory_scope != "none" for a in plan.adversaries.values())
        if processes.world_size > 1 and (self.shards is not None or keeps):
            return mb.pad_to_equal_count(per_rank, rows, whole_groups=whole_groups)[processes.rank]
        return [(micro, frozenset()) for micro in per_rank[processes.rank]]

    def _backward(
        self, context: UpdateContext, micro: mb.Micro, rows: Mapping[str, TokenRows], gradients: ObjectiveGradients | None, train: bool
    ) -> None:
        """Forwards of one micro-batch, and their backwards with `train`."""
        width = max(int(rows[s].tokens.lengths[numbers].max()) for s, numbers in micro.items())
        batch = {s: mb.take_rows(rows[s], numbers, width).to(self.network.device) for s, numbers in micro.items()}
        batch |= {s: mb.mask_row_keys(batch[s]) for s in context.idle}
        for component in context.plan.components:
            for losses, keep_graph in context.passes(micro, batch, component):
                if not train:
                    continue
                if gradients is not None:
                    gradients.add(losses)
                # Weights carry the counts of the whole update, so gradients of processes are summed.
                self.accelerator.backward(sum(losses.values()), retain_graph=keep_graph)

    def _step(self, plan: Plan) -> float:
        """The optimizer's step, after adversaries have ended their update; returns the norm of the gradient."""
        self._end_update(plan)
        if self.shards is None:
            self.processes.all_reduce_gradients([p for p in self.network.parameters() if p.requires_grad])
        norm = sharding.full_tensor(self.accelerator.clip_grad_norm_(self.network.parameters(), self.max_grad_norm or math.inf))
        self.optimizer.step()
        self.version += 1
        return float(norm)

    def _note_row_memory(self, plan: Plan) -> None:
        """Before the first update: what an adversary keeps by row is the same on all processes."""
        for name, adversary in plan.adversaries.items():
            if adversary.memory_scope == "rows" and name not in self._row_memory:
                self._row_memory[name] = dict(adversary.row_memory(self.memory.setdefault(name, {})))

    def _end_update(self, plan: Plan) -> None:
        """Adversaries after the last micro-batch; the row memories of all processes are merged before."""
        for name, adversary in plan.adversaries.items():
            memory = self.memory.setdefault(name, {})
            if self.processes.world_size > 1 and adversary.memory_scope == "rows":
                self._merge_row_memory(name, adversary, memory)
            adversary.end_update(memory, self.processes.all_reduce)

    def _merge_row_memory(self, name: str, adversary: Adversary, memory: Memory) -> None:
        rows, shared = adversary.row_memory(memory), self._row_memory[name]
        changed = {row: sites for row, sites in rows.items() if shared.get(row) is not sites}
        for row in changed:
            del rows[row]
        local = {f"{row}\t{site}": x for row, sites in changed.items() for site, x in sites.items() if mb.has_row_key(row)}
        for tensors in self.processes.all_gather_tensors(local):
            for row_and_site, x in tensors.items():
                row, _, site = row_and_site.partition("\t")
                rows.setdefault(row, {})[site] = x
        self._row_memory[name] = dict(rows)

    # ------------------------------------------------------------------------------------------------ the network

    def frozen_copy(self, *, moving: bool) -> Network:
        """A copy that never trains. `moving`: its weights will be replaced during the run."""
        if self.shards is None:
            return frozen_copy(self.network, moving=moving)
        assert self.template is not None
        return self.shards.clone(self.template, self.network).eval().requires_grad_(False)

    def full_network(self) -> Network | None:
        """The network; a sharded one on the main process alone, and every process must call."""
        return self.network if self.template is None else sharding.gather_on_host(self.network, self.template, self.processes.is_main)

    def configure(self, config: Learner) -> None:
        """What a stage or a schedule may move of the optimizer, as `config` has it; the scheduler's factor of the rate stays."""
        self.max_grad_norm, base = config.max_grad_norm, config.learning_rate
        for group in self.optimizer.param_groups:
            group["weight_decay"] = config.weight_decay
        for group, factor, i in zip(
            self.optimizer.param_groups, self.scheduler.lr_lambdas, range(len(self.scheduler.base_lrs)), strict=True
        ):
            if self.scheduler.base_lrs[i] != base:
                self.scheduler.base_lrs[i] = base
                group["lr"] = base * factor(self.scheduler.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, weights apart."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "version": self.version,
            "memory": self.memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.version = int(state["version"])
        self.memory, self._row_memory = state.get("memory", {}), {}


def _unedited(plan: Plan) -> frozenset[str]:
    """Sources whose rows no adversary edits: what their rows have in common is run once."""
    return frozenset(plan.sources) - {s for view in plan.adversaries for s in plan.readers(view)}


def _whole_groups(plan: Plan) -> frozenset[str]:
    """Sources whose groups must not be split over micro-batches."""
    shared = {s for view, a in plan.adversaries.items() if a.threat.share == "group" for s in plan.readers(view)}
    return frozenset(shared | {o.source for o in plan.objectives.values() if o.bundle == "group"})
