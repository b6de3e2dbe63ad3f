"""A learner: a model, an optimizer and one sum of objectives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from accelerate import Accelerator

from advalign.engine import micro as mb
from advalign.engine import optimizer as optim
from advalign.engine.dropout import dropout_of_update
from advalign.engine.finite import FiniteGuard, RowName, report
from advalign.engine.gradients import ObjectiveGradients
from advalign.engine.metrics import MetricAccumulator
from advalign.engine.plan import Plan
from advalign.engine.process_group import ProcessGroup
from advalign.engine.removals import remaining_tokens, weights_of
from advalign.engine.rng import seed_of
from advalign.engine.row_memory import RowMemories
from advalign.engine.views import UpdateContext
from advalign.errors import ConfigError, NonFiniteError
from advalign.interfaces.adversary import Memory
from advalign.models import ModelSpec, Network, self_check, sharding
from advalign.models.sharding import Sharding
from advalign.models.sharing import frozen_copy
from advalign.names import EVERY_STEP
from advalign.ranges import Bound, Count, Natural, NonNegative, OneOf
from advalign.types import TokenRows

SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "inverse_sqrt",
)  # fmt: skip
"""Schedules of transformers that need no arguments but their length and warm-up."""


@dataclass(frozen=True, kw_only=True)
class Learner(ModelSpec):
    """A model and how it is trained. Every draw of its sources is split into `minibatches`, `epochs` times: one optimizer update each."""

    learning_rate: Annotated[NonNegative, EVERY_STEP] = 1e-5
    """Base rate of AdamW."""
    weight_decay: Annotated[NonNegative, EVERY_STEP] = 0.0
    """Decoupled weight decay of AdamW; biases and norms do not decay, as in transformers."""
    max_grad_norm: Annotated[Bound, EVERY_STEP] = 1.0
    """Gradients are clipped to this L2 norm; 0: they are not clipped, as in transformers."""
    lr_scheduler_type: Annotated[str, OneOf(SCHEDULERS, "schedule")] = "constant"
    """Name of a transformers scheduler; its length is the number of this learner's updates in the run."""
    warmup_steps: Natural = 0
    """Updates of this learner during linear warm-up."""
    updates: Annotated[Natural, EVERY_STEP] = 1
    """Draws of its own sources per training step (n_d of a discriminator); 0: it only reads."""
    minibatches: Annotated[Count, EVERY_STEP] = 1
    """Parts of a draw, groups whole."""
    epochs: Annotated[Count, EVERY_STEP] = 1
    """Passes over a draw."""
    every: Annotated[Count, EVERY_STEP] = 1
    """It takes part in every so many steps of a stage (n_g policy steps per discriminator step)."""

    def __post_init__(self) -> None:
        if self.warmup_steps and self.lr_scheduler_type == "constant":
            raise ConfigError("learners: lr_scheduler_type 'constant' has no warm-up; use 'constant_with_warmup', or warmup_steps 0.")

    @property
    def num_updates(self) -> int:
        """Updates in a step that it takes part in."""
        return self.updates * self.epochs * self.minibatches


class LearnerRuntime:
    """A started learner. `version` counts its updates."""

    def __init__(
        self,
        name: str,
        config: Learner,
        network: Network,
        accelerator: Accelerator,
        num_updates: int,
        shards: Sharding | None = None,
    ) -> None:
        """`num_updates`: the length of the learning rate's schedule."""
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
        self.optimizer = optim.adamw(network, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        self.scheduler = get_scheduler(
            config.lr_scheduler_type, self.optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=num_updates
        )
        # Precision alone: gradients of several processes are summed here, once per update, or by the shards.
        self.autocast_network: Network = network if shards is not None else accelerator.prepare_model(network, evaluation_mode=True)
        self.optimizer = accelerator.prepare_optimizer(self.optimizer)
        self.masters = optim.MasterWeights(self.optimizer)
        self.guard = FiniteGuard(name)
        self.max_grad_norm = config.max_grad_norm
        """The bound of the current step; 0: none."""
        self.version = 0
        self.memory: dict[str, Memory] = {}
        """{adversary: what it keeps between updates}"""
        self.row_memories = RowMemories(self.processes)

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
        row_name: RowName | None = None,
    ) -> dict[str, float]:
        """One optimizer update on one minibatch {source: rows}, in micro-batches within `budget` tokens; returns its metrics.

        Every process is given all rows and runs its part of them. Without `train`, rows are read and reported, and nothing moves.
        `measure` adds the gradient norm of every objective and the cosines between them, at the price of one backward per objective.
        `row_name`: what the log calls rows whose loss is not finite.
        """
        metrics = MetricAccumulator()
        self.network.train()
        self._seed_dropout(key)
        gradients = ObjectiveGradients(self.network, self.processes.all_reduce) if measure else None
        self.row_memories.begin_update(plan, self.memory)
        if train:
            self.masters.begin()
        self.optimizer.zero_grad(set_to_none=True)
        with self._unsharded_root(), dropout_of_update(self.network, self.config.options, plan.objectives.values()):
            context = self._context(plan, rows, frozen, key, metrics)
            for micro, idle in self._micro_batches(plan, rows, budget):
                self._backward(replace(context, idle=idle), micro, rows, gradients, train)
        if not train:
            return report(plan, metrics.all_reduce(self.processes))
        norm = self._gradient_norm(plan)
        metrics = metrics.all_reduce(self.processes)
        if self.guard.passes(plan, metrics, norm, rows, row_name):
            self._step()
        elif self.guard.skipped_in_a_row == 1:
            self._check_network()
        logs = report(plan, metrics)
        logs |= {f"{a}/gain": logs[f"{a}/loss_end"] - logs[f"{a}/loss_start"] for a in plan.adversaries if f"{a}/loss_start" in logs}
        logs |= gradients.summary() if gradients is not None else {}
        logs |= {f"{self.name}/grad_norm": norm, f"{self.name}/learning_rate": self.optimizer.param_groups[0]["lr"]}
        self.advance_schedule()
        return logs

    def advance_schedule(self, updates: int = 1) -> None:
        """Moves the learning rate on by some updates, whether they were made or skipped."""
        with warnings.catch_warnings():  # torch warns where none was made yet
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(updates):
                self.scheduler.step()

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
        whole_groups = plan.whole_groups
        layout = mb.BatchLayout(self.network.packs and not plan.needs_input_gradients, plan.unedited_sources)
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
                self.masters.collect()

    def _gradient_norm(self, plan: Plan) -> float:
        """The norm of the gradient of all processes, which is then clipped, after adversaries have ended their update."""
        self.row_memories.end_update(plan, self.memory)
        if self.shards is None:
            self.processes.all_reduce_gradients(self.masters.updated(p for p in self.network.parameters() if p.requires_grad))
        parameters = self.masters.updated(self.network.parameters())
        return float(sharding.full_tensor(self.accelerator.clip_grad_norm_(parameters, self.max_grad_norm or math.inf)))

    def _step(self) -> None:
        self.optimizer.step()
        self.masters.round()
        self.version += 1
        self.guard.check_weights({name: p for name, p in self.network.named_parameters() if p.requires_grad}, self.processes)

    def _check_network(self) -> None:
        """Raises where an update was skipped because the model itself gives no finite numbers."""
        try:
            self_check.check_numbers(self.network)
        except ConfigError as error:
            raise NonFiniteError(f"learners.{self.name}.{error}") from None

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
        self.max_grad_norm = config.max_grad_norm
        optim.configure(self.optimizer, self.scheduler, learning_rate=config.learning_rate, weight_decay=config.weight_decay)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, weights apart."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "masters": self.masters.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "version": self.version,
            "skipped_in_a_row": self.guard.skipped_in_a_row,
            "memory": self.memory,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.masters.load_state_dict(state["masters"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.version, self.guard.skipped_in_a_row = int(state["version"]), int(state["skipped_in_a_row"])
        self.memory, self.row_memories = state.get("memory", {}), RowMemories(self.processes)
