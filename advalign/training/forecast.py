"""What a step will cost, before the run and without its weights: from the configuration, the sizes of its models and a sample of its data.

Operations are those of `models/model_cost.py` and `engine/cost.py`; every response is taken to be as long as it may be, so rollouts cost
at most this. Peak memory: weights, gradients, AdamW's two moments, frozen copies, and the larger of the activations that a micro-batch
stores for its backward and the key-value cache of sampling. Bytes moved: weights and activations, once per pass that reads or writes them,
and keys and values at every sampled token; caches of the processor are not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from advalign import data as loading
from advalign.engine.cost import Size, count_operations, num_live_views
from advalign.engine.learner import Learner
from advalign.engine.plan import Plan
from advalign.errors import AdvalignError
from advalign.interfaces import SamplingRequest, Source
from advalign.models import Network
from advalign.models.hidden_state_critic import build_critic, read_learner
from advalign.models.load import meta_network
from advalign.models.model_cost import ModelCost, model_cost, num_trained
from advalign.models.sharing import base_owner, load_order
from advalign.training.annotate import needed_columns
from advalign.training.class_labels import with_num_labels
from advalign.training.context import RunContext
from advalign.training.run_spec import StepPlan
from advalign.training.schedule import Stage
from advalign.training.throughput import size_of
from advalign.training.trainer import Trainer

LOOKED_AT = 64
"""Examples whose lengths are measured."""
PASSES = {"weights": 3, "optimizer": 7}
"""How often weights are moved by a micro-batch that trains (read twice, gradient written), and what trains by an optimizer step (p, g, m, v
read; p, m, v written)."""


@dataclass
class Forecast:
    """The cost of one step of a stage."""

    stage: str
    """Name of the stage."""
    operations: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("sampling", "annotation", "ascent", "update"), 0.0))
    """{part of a step: FLOPs}"""
    memory: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("weights", "gradients", "optimizer", "copies", "working"), 0.0))
    """{part of memory: bytes} at the peak."""
    moved: float = 0.0
    """Bytes read and written."""
    sampled: float = 0.0
    """Tokens sampled at most."""
    trained: float = 0.0
    """Tokens trained on."""
    estimated: list[str] = field(default_factory=list)
    """Sources whose sizes could only be guessed."""

    def lines(self) -> list[str]:
        """As text."""
        total = sum(self.operations.values())
        parts = ", ".join(f"{part} {value / total:.0%}" for part, value in self.operations.items() if value) if total else ""
        memory = ", ".join(f"{part} {_bytes(value)}" for part, value in self.memory.items() if value)
        name = f"a step of {self.stage}" if self.stage else "a step"
        lines = [
            f"{name}: {_flops(total)} ({parts}); {self.sampled:,.0f} tokens sampled at most, {self.trained:,.0f} trained on",
            f"  peak memory about {_bytes(sum(self.memory.values()))} ({memory}); about {_bytes(self.moved)} moved",
        ]
        if self.estimated:
            lines.append(f"  sizes guessed from the sources they read: {', '.join(self.estimated)}")
        return lines


def forecast(trainer: Trainer) -> list[Forecast]:
    """One per stage. Loads tokenizers and data, and no weights."""
    networks = _meta_networks(trainer)
    costs = {name: model_cost(net.model, head=net.head, dtype=net.dtype) for name, net in networks.items()}
    sizes, estimated = _sizes(trainer, networks)
    return [_StageForecast(trainer, stage, costs, sizes).run(estimated) for stage in trainer.run_spec.stages]


def _meta_networks(trainer: Trainer) -> dict[str, Network]:
    """{learner: its network without weights}; of learners that share a base, the network of its owner."""
    prebuilt, sources, objectives = trainer.prebuilt_networks, trainer.config["sources"], trainer.config["objectives"]
    learners = with_num_labels(trainer.config["learners"], prebuilt, sources, objectives)
    networks: dict[str, Network] = {}
    for name in load_order(learners, prebuilt):
        spec = learners[name]
        base, read = base_owner(spec), read_learner(spec.model)
        if name in prebuilt:
            networks[name] = prebuilt[name]
        elif read is not None:
            with torch.device("meta"):
                networks[name] = build_critic(networks[read], spec, f"learners.{name}")
        else:
            networks[name] = networks[base] if base else _meta_network(spec)
    return networks


def _meta_network(learner: Learner) -> Network:
    from_scratch = isinstance(learner.tokenizer, Mapping) and "data" in learner.tokenizer
    return meta_network(learner, loading.texts(learner.tokenizer["data"]) if from_scratch else [])


# ------------------------------------------------------------------------------------------------------- rows


def _sizes(trainer: Trainer, networks: Mapping[str, Network]) -> tuple[dict[str, Size], list[str]]:
    """{source: size of one draw} and the names of those that were guessed."""
    sizes: dict[str, Size] = {}
    guessed: list[str] = []
    waiting: dict[str, Source] = dict(trainer.config["sources"])
    while waiting:
        name = next((n for n, s in waiting.items() if not set(s.depends_on) & set(waiting)), next(iter(waiting)))
        source = waiting.pop(name)
        readers = [o.learner for o in trainer.config["objectives"].values() if o.source == name]
        names = [n for n in (source.samples_with or "", *readers) if n in networks]
        network = networks[names[0]] if names else next(iter(networks.values()))
        size = _requested(source.request, network) if source.request is not None else _drawn_once(trainer, name, source, network)
        if size is None:
            guessed.append(name)
            others = [sizes[o] for o in source.depends_on if o in sizes] or list(sizes.values())
            length = sum(o.length for o in others) / len(others) if others else 64.0
            rows = 2 * source.draw_size
            size = Size(rows * length, rows * length / 2, length)
        sizes[name] = size
    return sizes, guessed


def _requested(request: SamplingRequest, network: Network) -> Size | None:
    """Rows of a source that is sampled for, every response as long as it may be."""
    try:
        examples = loading.examples(request.data, limit=LOOKED_AT)
    except AdvalignError:
        return None
    lengths = [len(ids) for ids in network.encoder.prompts([e.prompt for e in examples])]
    prompt, rows = sum(lengths) / len(lengths), request.num_prompts * request.responses_per_prompt
    new = request.sampling.max_new_tokens
    return Size(rows * (prompt + new), rows * new, prompt + new)


def _drawn_once(trainer: Trainer, name: str, source: Source, network: Network) -> Size | None:
    """Rows of a source that needs nothing but its data."""
    if source.depends_on or source.samples_with is not None:
        return None
    context = RunContext(trainer.args.seed, None, trainer.args.token_budget)
    try:
        runtime = source.start(context, name)
        return size_of(runtime.rows(runtime.draw(0, 0), network.encoder).tokens)  # type: ignore[attr-defined]
    except AdvalignError:
        return None


# ------------------------------------------------------------------------------------------------------ a step


class _StageForecast:
    """Adds up the forecast of one stage, every schedule at its strongest."""

    def __init__(self, trainer: Trainer, stage: Stage, costs: Mapping[str, ModelCost], sizes: Mapping[str, Size]) -> None:
        self.spec, self.budget = trainer.run_spec, trainer.args.token_budget
        self.rows_at_once = trainer.rollout_engine.rows_at_once
        self.plan: StepPlan = trainer.run_spec.step_plan(stage, strongest=True)
        self.costs, self.sizes = costs, sizes
        self.result = Forecast(stage=stage.name)

    def run(self, estimated: list[str]) -> Forecast:
        """The forecast; `estimated`: sources whose sizes were guessed."""
        for source in self.plan.sources:
            self._add_sampling(source)
        working = [0.0, *(self._add_updates(plan) for plan in self.plan.active.values())]
        for name in self.costs:
            self._add_weights(name)
        self.result.memory["working"] = max(working + [self._cache_bytes(source) for source in self.plan.sources])
        self.result.estimated = sorted(set(self.plan.sources) & set(estimated))
        return self.result

    def _request(self, source: str) -> tuple[SamplingRequest, ModelCost] | None:
        """What a draw of a source samples, and the cost of the sampler; None: it samples nothing that is known."""
        config: Source = self.plan.config["sources"][source]
        sampler = config.samples_with or ""
        return None if config.request is None or sampler not in self.costs else (config.request, self.costs[sampler])

    def _add_sampling(self, name: str) -> None:
        requested = self._request(name)
        if requested is None:
            return
        (request, cost), size, result = requested, self.sizes[name], self.result
        source, new = self.plan.config["sources"][name], request.sampling.max_new_tokens
        rows, prompt = request.num_prompts * request.responses_per_prompt, size.length - new
        result.sampled += rows * new
        result.operations["sampling"] += cost.forward(request.num_prompts * prompt, request.num_prompts, prompt)
        result.operations["sampling"] += cost.forward(rows * new, rows * new, 2 * (prompt + new / 2))
        batches = -(-rows // (self.rows_at_once or rows))
        result.moved += batches * new * cost.parameters * cost.bytes + rows * new * (prompt + new / 2) * cost.cache_bytes
        readers = [o for o in self.spec.config["objectives"].values() if o.source == name]
        needed = needed_columns(source, readers, self.plan.config["learners"])
        passes = sum(column in needed for column in ("old_logprobs", "ref_logprobs", "values")) + bool(
            source.advantage_estimator is not None and source.advantage_estimator.needs_values
        )
        result.operations["annotation"] += passes * cost.forward(size.tokens, size.targets, size.length)

    def _add_updates(self, plan: Plan) -> float:
        """Adds the updates of a learner; returns the bytes of activations that its micro-batches store."""
        cost, spec, result = self.costs[plan.learner], self.plan.config["learners"][plan.learner], self.result
        copies = {n: self.costs[copy.learner] for n, copy in self.spec.frozen.items() if copy.learner != plan.learner}
        cost = replace(cost, trained=num_trained(spec.options, cost))
        times = spec.updates * spec.epochs
        for part, value in count_operations(plan, cost, self.sizes, copies).items():
            result.operations[part] += times * value
        tokens = sum(self.sizes[s].tokens for s in plan.sources)
        result.trained += times * tokens
        micro = min(float(self.budget), tokens / spec.minibatches)
        stored: float = cost.activation_bytes
        if spec.options.get("gradient_checkpointing"):
            stored = cost.activation_bytes / cost.layers + cost.bytes * cost.layers * cost.width
        passes = sum(plan.forwards().values())
        number = max(tokens / self.budget, spec.minibatches) * times
        result.moved += number * passes * PASSES["weights"] * cost.parameters * cost.bytes + 2 * times * passes * tokens * stored
        result.moved += times * spec.minibatches * PASSES["optimizer"] * cost.trained * max(cost.bytes, 4)
        return micro * stored * num_live_views(plan)

    def _add_weights(self, name: str) -> None:
        """Adds the memory of a learner that no step changes."""
        cost, spec, memory = self.costs[name], self.plan.config["learners"][name], self.result.memory
        shares_base, adapted = base_owner(spec) is not None, bool({"lora", "adapter"} & set(spec.options))
        trained = num_trained(spec.options, cost)
        memory["weights"] += (0 if shares_base else cost.parameters * cost.bytes) + (trained * cost.bytes if adapted else 0)
        if name in self.plan.active:
            exact = max(cost.bytes, 4)  # of what the optimizer holds; weights of half precision have copies and gradients in float32
            copied = cost.bytes < exact and not adapted
            memory["gradients"] += trained * (cost.bytes + (exact if copied else 0))
            memory["optimizer"] += trained * exact * (3 if copied else 2)
        copies = [copy for copy in self.spec.frozen.values() if copy.learner == name]
        memory["copies"] += len(copies) * (trained if adapted else cost.parameters) * cost.bytes

    def _cache_bytes(self, source: str) -> float:
        """The key-value cache of a draw."""
        requested = self._request(source)
        if requested is None:
            return 0.0
        request, cost = requested
        rows = min(request.num_prompts * request.responses_per_prompt, self.rows_at_once or 10**9)
        return rows * self.sizes[source].length * cost.cache_bytes


def _flops(x: float) -> str:
    return _scaled(x, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def _bytes(x: float) -> str:
    return _scaled(x, 1024, ("B", "KB", "MB", "GB", "TB"))


def _scaled(x: float, step: int, units: tuple[str, ...]) -> str:
    number = 0
    while x >= step and number < len(units) - 1:
        x, number = x / step, number + 1
    return f"{x:.3g} {units[number]}"


__all__ = ["Forecast", "forecast"]
