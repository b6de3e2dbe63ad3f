"""Learners that share one frozen base (`learner:<name>`), networks loaded in the order of who reads whom, and frozen copies."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping

import torch

from advalign.errors import ConfigError, unknown
from advalign.models import adapters, folders
from advalign.models.forward import Network
from advalign.models.hidden_state_critic import read_learner
from advalign.models.load import apply_options
from advalign.models.specification import SHARED_OPTIONS, ModelSpec, check_options, head_options

PREFIX = "learner:"


def frozen_copy(network: Network, *, moving: bool = False) -> Network:
    """A copy that never trains: a reference, a teacher, an opponent. Of a network that shares its base only adapter and
    head are copied; an untrained adapter is left out, unless the copy is `moving` (an average)."""
    copied = adapters.clone_sharing_base(network) if network.shares_base else copy.deepcopy(network)
    if network.shares_base and not moving and adapters.adds_nothing(network.model):
        copied.model = adapters.without_adapter(copied.model)
    copied.eval().requires_grad_(False)
    copied.num_forwards = copied.num_rows = 0
    return copied


def share_base(owner: Network, spec: ModelSpec, path: str, seed: int = 0) -> Network:
    """A network over the frozen base of `owner`, with an adapter and a head of its own; `path`: of `spec` in the configuration."""
    options = {"seed": seed, **spec.options}
    check_options(options, SHARED_OPTIONS)
    if not owner.shares_base:
        raise _trains_its_base(path, spec.model)
    if spec.head == "classifier" or (spec.head == "policy" and owner.head != "policy"):
        raise ConfigError(f"{path}.head: a {spec.head} needs a head that '{spec.model}' does not have; use score or value, or a model.")
    if spec.head == "policy" and not {"lora", "adapter"} & set(options):
        raise ConfigError(f"{path}.options: a policy on '{spec.model}' has nothing of its own to train; give options: {{lora: {{r: 8}}}}.")
    body = adapters.without_adapter(owner.model if spec.head == "policy" else owner.backbone)
    truncation = options.get("truncation", owner.encoder.truncation.mode)
    encoder = owner.encoder.with_length(min(spec.max_length, owner.encoder.max_length), truncation=truncation)
    with torch.random.fork_rng():
        torch.manual_seed(int(options["seed"]))
        pooling = options.get("pooling") or owner.pooling
        network = Network(body, encoder, spec.head, pooling=pooling, **head_options(spec.head, {}, options))
        network.source = owner.source
        network.model.gradient_checkpointing_disable()
        adapters.freeze(network)
        return apply_options(network, options)


def base_owner(spec: ModelSpec) -> str | None:
    """The learner whose base `spec` names, if it names one."""
    return spec.model.removeprefix(PREFIX) if spec.model.startswith(PREFIX) else None


def load_order(learners: Mapping[str, ModelSpec], loaded: Iterable[str] = ()) -> list[str]:
    """Names in an order in which they can be loaded. Refuses what cannot be shared; networks that are `loaded` already are not checked."""
    order: list[str] = []

    def visit(name: str, visiting: tuple[str, ...]) -> None:
        if name in visiting:
            raise ConfigError(f"learners.{name}.model: it would share the base of itself ({' -> '.join((*visiting, name))}).")
        owner = None if name in loaded else base_owner(learners[name])
        if owner is not None:
            _check_sharing(name, owner, learners, loaded)
            visit(owner, (*visiting, name))
        read = None if name in loaded else read_learner(learners[name].model)
        if read is not None:
            if read not in learners:
                raise unknown(f"learners.{name}.model", "learner", read, learners)
            visit(read, (*visiting, name))
        if name not in order:
            order.append(name)

    for name in learners:
        visit(name, ())
    return order


def _check_sharing(name: str, owner: str, learners: Mapping[str, ModelSpec], loaded: Iterable[str]) -> None:
    path = f"learners.{name}"
    if owner not in learners:
        raise unknown(f"{path}.model", "learner", owner, learners)
    mine, theirs = learners[name], learners[owner]
    if mine.tokenizer not in (None, theirs.tokenizer):
        raise ConfigError(f"{path}.tokenizer: '{mine.model}' brings the tokenizer of '{owner}', and another one is given; leave it out.")
    if mine.dtype not in ("float32", theirs.dtype):
        raise ConfigError(f"{path}.dtype: {mine.dtype} given, but the base of '{owner}' is {theirs.dtype}; leave it out.")
    adapted = {"lora", "adapter"} & set(theirs.options) or folders.holds_adapter(folders.model_folder(theirs.model))
    if owner not in loaded and base_owner(theirs) is None and not adapted:
        raise _trains_its_base(path, mine.model)


def _trains_its_base(path: str, model: str) -> ConfigError:
    owner = model.removeprefix(PREFIX)
    return ConfigError(
        f"{path}.model: '{owner}' trains all of its weights, so its base cannot be shared; give it options: {{lora: {{r: 8}}}}."
    )
