"""From a configuration to models that fit together: every learner's network, and what is wrong, or odd, about the set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from advalign import data as loading
from advalign.engine.learner import Learner
from advalign.errors import ConfigError
from advalign.models import Network, latent, load
from advalign.models.load import borrow, lender_of, lenders_first
from advalign.training.context import RunContext
from advalign.training.recipe import Recipe
from advalign.types import DemoRows, RolloutRows


def networks(learners: Mapping[str, Learner], given: Mapping[str, Network], seed: int) -> dict[str, Network]:
    """{learner: its network}; those `given` ready-made as they are, lenders of a base before those who borrow it."""
    found: dict[str, Network] = {}
    for name in lenders_first(learners, given):
        found[name] = given.get(name) or _loaded(name, learners[name], seed, found)
    return found


def _loaded(name: str, learner: Learner, seed: int, loaded: Mapping[str, Network]) -> Network:
    if lender := lender_of(learner):
        return borrow(loaded[lender], learner, f"learners.{name}", seed)
    if owner := latent.owner_of(learner.model):
        return latent.over(loaded[owner], learner, f"learners.{name}", seed)
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


def check_tokenizers(recipe: Recipe, context: RunContext) -> None:
    """Sampled ids are never re-tokenised: whoever trains on a rollout must read the sampler's ids."""
    for name, term in recipe.config["objectives"].items():
        source = recipe.config["sources"][term.source]
        sampler = getattr(source, "learner", term.learner)
        sampler = recipe.frozen[sampler].of if sampler in recipe.frozen else sampler
        if sampler != term.learner and source.yields in (RolloutRows, DemoRows):
            mine, theirs = (context.encoder(n).tokenizer.get_vocab() for n in (term.learner, sampler))
            if mine != theirs:
                raise ConfigError(
                    f"objectives.{name}: learner '{term.learner}' and the sampler '{sampler}' have different tokenizers; "
                    "rollouts are never re-tokenised, so they must share one."
                )


def outgrown(sources: Mapping[str, Any], sizes: Mapping[str, int]) -> list[str]:
    """Notes on judges that are larger than the policies they judge; `sizes`: {learner: number of parameters}."""
    found: list[str] = []
    judges = {r.learner for s in sources.values() for r in getattr(s, "rewards", ()) if hasattr(r, "learner")}
    for name, source in sources.items():
        policy = getattr(source, "learner", "")
        for judge in sorted(judges & set(sizes)):
            if policy in sizes and sizes[judge] > sizes[policy] and source.yields is RolloutRows:
                found.append(
                    f"learners.{judge} has {sizes[judge]:,} parameters and judges '{policy}' of sources.{name} with {sizes[policy]:,}: "
                    "a judge larger than what it judges was found to teach it worse (GAD, arXiv:2511.10643)."
                )
    return found
