"""What a step will cost, before the run and without its weights: from the configuration, the shapes of its models and a look at its data.

Operations are those of `models/shape.py` and `engine/cost.py`; every response is taken to be as long as it may be, so rollouts cost at
most this. Peak memory: weights, gradients, AdamW's two moments, frozen copies, and the larger of what a micro-batch keeps for its way
back and what sampling caches. Bytes moved: weights and what is kept, once per pass that reads or writes them, and keys and values at
every sampled token; caches of the processor are not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from advalign import data as loading
from advalign.engine.cost import Size, alive, operations
from advalign.engine.learner import Learner
from advalign.engine.plan import Plan
from advalign.errors import AdvalignError
from advalign.interfaces import SamplingRequest, Source
from advalign.models import Network
from advalign.models.hidden_state_critic import build_critic, read_learner
from advalign.models.load import meta_network
from advalign.models.model_cost import ModelCost, model_cost, num_trained
from advalign.models.sharing import base_owner, load_order
from advalign.training.annotate import Annotator
from advalign.training.context import RunContext

LOOKED_AT = 64  # examples whose lengths are measured
PASSES = {"weights": 3, "optimizer": 7}  # of a trained micro-batch: read twice, gradient written; read p g m v, write p m v


@dataclass
class Forecast:
    """Of one step of a stage. operations: {"sampling" | "annotation" | "ascent" | "update": FLOPs}; memory: {what: bytes} at the peak;
    moved: bytes; sampled, trained: tokens; estimated: sources whose rows could only be guessed."""

    stage: str
    operations: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("sampling", "annotation", "ascent", "update"), 0.0))
    memory: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("weights", "gradients", "optimizer", "copies", "working"), 0.0))
    moved: float = 0.0
    sampled: float = 0.0
    trained: float = 0.0
    estimated: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        total = sum(self.operations.values())
        shares = ", ".join(f"{what} {value / total:.0%}" for what, value in self.operations.items() if value) if total else ""
        memory = ", ".join(f"{what} {_bytes(value)}" for what, value in self.memory.items() if value)
        name = f"a step of {self.stage}" if self.stage else "a step"
        found = [
            f"{name}: {_flops(total)} ({shares}); {self.sampled:,.0f} tokens sampled at most, {self.trained:,.0f} trained on",
            f"  peak memory about {_bytes(sum(self.memory.values()))} ({memory}); about {_bytes(self.moved)} moved",
        ]
        if self.estimated:
            found.append(f"  guessed from the rows they are made of: {', '.join(self.estimated)}")
        return found


def forecast(trainer: Any) -> list[Forecast]:
    """One per stage. Loads tokenizers and data, and no weights."""
    config = trainer.config
    networks: dict[str, Network] = {}
    for name in load_order(config["learners"], trainer._given):
        spec = config["learners"][name]
        lender, owner = base_owner(spec), read_learner(spec.model)
        if owner is not None and name not in trainer._given:
            with torch.device("meta"):
                networks[name] = build_critic(networks[owner], spec, f"learners.{name}")
            continue
        networks[name] = trainer._given.get(name) or (networks[lender] if lender else _drawn(name, spec))
    known = {name: model_cost(net.model, head=net.head, dtype=net.dtype) for name, net in networks.items()}
    sizes, estimated = _sizes(trainer, networks)
    return [_stage(trainer, stage, known, sizes, estimated) for stage in trainer.run_spec.stages]


def _drawn(name: str, learner: Learner) -> Network:
    texts: list[str] = []
    if isinstance(learner.tokenizer, Mapping) and "data" in learner.tokenizer:
        texts = loading.texts(learner.tokenizer["data"])
    return meta_network(learner, texts)


# ------------------------------------------------------------------------------------------------------- rows


def _sizes(trainer: Any, networks: Mapping[str, Network]) -> tuple[dict[str, Size], list[str]]:
    """{source: size of one draw} and the names of those that were guessed."""
    found: dict[str, Size] = {}
    guessed: list[str] = []
    waiting = dict(trainer.config["sources"])
    while waiting:
        name = next((n for n, s in waiting.items() if not set(s.depends_on) & set(waiting)), next(iter(waiting)))
        source = waiting.pop(name)
        readers = [t.learner for t in trainer.config["objectives"].values() if t.source == name]
        sampler = source.samples_with or ""
        network = networks[sampler if sampler in networks else _first(readers, networks)]
        size = _asked(source.request, network) if source.request is not None else _drawn_once(trainer, name, source, network)
        if size is None:
            guessed.append(name)
            others = [found[o] for o in source.depends_on if o in found] or list(found.values())
            length = sum(o.length for o in others) / len(others) if others else 64.0
            rows = 2 * source.draw_size
            size = Size(rows * length, rows * length / 2, length)
        found[name] = size
    return found, guessed


def _first(names: list[str], networks: Mapping[str, Network]) -> str:
    return names[0] if names else next(iter(networks))


def _asked(request: SamplingRequest, network: Network) -> Size | None:
    """Rows of a source that is sampled for, every response as long as it may be."""
    try:
        examples = loading.examples(request.data, limit=LOOKED_AT)
    except AdvalignError:
        return None
    lengths = [len(ids) for ids in network.encoder.prompts([e.prompt for e in examples])]
    prompt, rows = sum(lengths) / len(lengths), request.num_prompts * request.responses_per_prompt
    new = request.sampling.max_new_tokens
    return Size(rows * (prompt + new), rows * new, prompt + new)


def _drawn_once(trainer: Any, name: str, source: Source, network: Network) -> Size | None:
    """Rows of a source that needs nothing but its data."""
    if source.depends_on or source.samples_with is not None:
        return None
    context = RunContext(trainer.args.seed, None, trainer.args.token_budget)
    try:
        runtime = source.start(context, name)
        rows: Any = runtime.rows(runtime.draw(0, 0), network.encoder)
        tokens = rows.tokens
    except AdvalignError:
        return None
    return Size(float(tokens.mask.sum()), float(tokens.target.sum()), float(tokens.lengths.double().mean()))


# ------------------------------------------------------------------------------------------------------ a step


def _stage(trainer: Any, stage: Any, known: Mapping[str, ModelCost], sizes: Mapping[str, Size], estimated: list[str]) -> Forecast:
    made = Forecast(stage=stage.name)
    config = trainer.run_spec.active_config(stage, 0, 0, strongest=True)[0]
    plans = {n: p for n, p in trainer.run_spec.plans(stage, strongest=True).items() if p.terms}
    for source in {s for p in plans.values() for s in p.sources}:
        _sampling(made, trainer, source, config, known, sizes[source], {s for p in plans.values() for s in p.sources})
    working = [0.0]
    for name, p in plans.items():
        working.append(_learner(made, trainer, p, config["learners"][name], known, sizes))
    for name, shape in known.items():
        _standing(made, trainer, name, config["learners"][name], shape, name in plans)
    cached = [_cached(trainer, config["sources"][s], known, sizes[s]) for p in plans.values() for s in p.sources]
    made.memory["working"] = max(working + cached)
    made.estimated = sorted({s for p in plans.values() for s in p.sources if s in estimated})
    return made


def _sampling(made: Forecast, trainer: Any, name: str, config: Any, known: Mapping[str, ModelCost], size: Size, read: set[str]) -> None:
    source = config["sources"][name]
    request, sampler = source.request, source.samples_with or ""
    if request is None or sampler not in known:
        return
    shape, new = known[sampler], request.sampling.max_new_tokens
    rows, prompt = request.num_prompts * request.responses_per_prompt, size.length - new
    made.sampled += rows * new
    made.operations["sampling"] += shape.forward(request.num_prompts * prompt, request.num_prompts, prompt)
    made.operations["sampling"] += shape.forward(rows * new, rows * new, 2 * (prompt + new / 2))
    batches = -(-rows // (trainer.engine.rows_at_once or rows))
    made.moved += batches * new * shape.parameters * shape.bytes + rows * new * (prompt + new / 2) * shape.cache_bytes
    readers = [t for t in trainer.config["objectives"].values() if t.source == name]
    needed = Annotator({}, {}, None, 0).needs(source, readers, config["learners"])
    passes = sum(column in needed for column in ("old_logprobs", "ref_logprobs", "values")) + bool(
        source.advantage_estimator is not None and source.advantage_estimator.needs_values
    )
    made.operations["annotation"] += passes * shape.forward(size.tokens, size.targets, size.length)


def _learner(made: Forecast, trainer: Any, p: Plan, spec: Learner, known: Mapping[str, ModelCost], sizes: Mapping[str, Size]) -> float:
    """Adds the updates of a learner; what its micro-batches keep."""
    shape, copies = known[p.learner], {n: known[copy.learner] for n, copy in trainer.run_spec.frozen.items() if copy.learner != p.learner}
    own = ModelCost(**{**vars(shape), "trained": num_trained(spec.options, shape)})
    times = spec.updates * spec.epochs
    for what, value in operations(p, own, sizes, copies).items():
        made.operations[what] += times * value
    tokens = sum(sizes[s].tokens for s in p.sources)
    made.trained += times * tokens
    micro = min(float(trainer.args.token_budget), tokens / spec.minibatches)
    kept: float = own.activation_bytes
    if spec.options.get("gradient_checkpointing"):
        kept = own.activation_bytes / own.layers + own.bytes * own.layers * own.width
    passes = sum(p.forwards().values())
    number = max(tokens / trainer.args.token_budget, spec.minibatches) * times
    made.moved += number * passes * PASSES["weights"] * own.parameters * own.bytes + 2 * times * passes * tokens * kept
    made.moved += times * spec.minibatches * PASSES["optimizer"] * own.trained * own.bytes
    return micro * kept * alive(p)


def _standing(made: Forecast, trainer: Any, name: str, spec: Learner, shape: ModelCost, trains: bool) -> None:
    borrowed, adapted = base_owner(spec) is not None, bool({"lora", "adapter"} & set(spec.options))
    trained = num_trained(spec.options, shape)
    made.memory["weights"] += (0 if borrowed else shape.parameters * shape.bytes) + (trained * shape.bytes if adapted else 0)
    if trains:
        made.memory["gradients"] += trained * shape.bytes
        made.memory["optimizer"] += 2 * trained * shape.bytes
    copies = [c for c in trainer.run_spec.frozen.values() if c.learner == name]
    made.memory["copies"] += len(copies) * (trained if adapted else shape.parameters) * shape.bytes


def _cached(trainer: Any, source: Source, known: Mapping[str, ModelCost], size: Size) -> float:
    request, sampler = source.request, source.samples_with or ""
    if request is None or sampler not in known:
        return 0.0
    rows = min(request.num_prompts * request.responses_per_prompt, trainer.engine.rows_at_once or 10**9)
    return rows * size.length * known[sampler].cache_bytes


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
