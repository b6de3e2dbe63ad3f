"""From a configuration to models that fit together: every learner's network, and what is wrong, or odd, about the set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advalign import data as loading
from advalign.engine.learner import Learner
from advalign.errors import ConfigError
from advalign.models import Network, load
from advalign.models.hidden_state_critic import build_critic, read_learner
from advalign.models.sharing import base_owner, load_order, share_base
from advalign.training.context import RunContext
from advalign.training.run_spec import RunSpec
from advalign.types import DemoRows, RolloutRows


def networks(learners: Mapping[str, Learner], given: Mapping[str, Network], seed: int) -> dict[str, Network]:
    """{learner: its network}; those `given` ready-made as they are, lenders of a base before those who share_base it."""
    found: dict[str, Network] = {}
    for name in load_order(learners, given):
        found[name] = given.get(name) or _loaded(name, learners[name], seed, found)
    return found


def _loaded(name: str, learner: Learner, seed: int, loaded: Mapping[str, Network]) -> Network:
    if lender := base_owner(learner):
        return share_base(loaded[lender], learner, f"learners.{name}", seed)
    if owner := read_learner(learner.model):
        return build_critic(loaded[owner], learner, f"learners.{name}", seed)
    texts: list[str] = []
    if isinstance(learner.tokenizer, Mapping):
        if "data" not in learner.tokenizer:
            raise ConfigError(f"learners.{name}.tokenizer: a tokenizer from scratch needs data (a task or a file) to be built from.")
        texts = loading.texts(learner.tokenizer["data"])
    return load(
        learner.model,
        head=learner.head,
        tokenizer=learner.tokenizer,
        texts=texts,
        max_length=learner.max_length,
        dtype=learner.dtype,
        options={"seed": seed, **learner.options},
    )


def check_tokenizers(run_spec: RunSpec, context: RunContext) -> None:
    """Sampled ids are never re-tokenised: whoever trains on a rollout must read the sampler's ids."""
    for name, term in run_spec.config["objectives"].items():
        source = run_spec.config["sources"][term.source]
        sampler = source.samples_with or term.learner
        sampler = run_spec.frozen[sampler].learner if sampler in run_spec.frozen else sampler
        if sampler != term.learner and source.row_type in (RolloutRows, DemoRows):
            mine, theirs = (context.encoder(n).tokenizer.get_vocab() for n in (term.learner, sampler))
            if mine != theirs:
                raise ConfigError(
                    f"objectives.{name}: learner '{term.learner}' and the sampler '{sampler}' have different tokenizers; "
                    "rollouts are never re-tokenised, so they must share one."
                )


def warn_large_discriminators(sources: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """Notes on discriminators that are larger than the policies they score; `sizes`: {learner: number of parameters}."""
    found: list[str] = []
    named = {r.scoring_learner for s in sources.values() for r in s.reward_parts}
    discriminators = {name for name in named if name is not None}
    for name, source in sources.items():
        policy = source.samples_with or ""
        for scorer in sorted(discriminators & set(sizes)):
            if policy in sizes and sizes[scorer] > sizes[policy] and source.row_type is RolloutRows:
                found.append(
                    f"learners.{scorer} has {sizes[scorer]:,} parameters and scores '{policy}' of sources.{name} with {sizes[policy]:,}: "
                    "a discriminator larger than the policy was found to teach it worse (GAD, arXiv:2511.10643)."
                )
    return found
