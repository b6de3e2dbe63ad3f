"""From a configuration to networks that fit together, and checks of the set."""

from __future__ import annotations

from collections.abc import Mapping

from advalign import data as loading
from advalign.engine.learner import Learner
from advalign.errors import ConfigError, located
from advalign.interfaces import Source
from advalign.models import Network, load, loading_arguments, perturb, saving
from advalign.models.hidden_state_critic import build_critic, read_learner
from advalign.models.pretrained import check_classes
from advalign.models.sharing import base_owner, load_order, share_base
from advalign.training.context import RunContext
from advalign.training.run_spec import RunSpec
from advalign.types import DemoRows, RolloutRows

PARTS = {"model.options": "options", "model": "model", "tokenizer": "tokenizer", "head": "head", "dtype": "dtype"}
"""{how sentences about a model begin: the field of its learner}"""


def networks(learners: Mapping[str, Learner], prebuilt: Mapping[str, Network], seed: int, *, saved: bool = False) -> dict[str, Network]:
    """{learner: its network}: `prebuilt`, or loaded after the network whose base it shares or whose hidden states it reads. `saved`:
    their folders will be written."""
    loaded: dict[str, Network] = {}
    for name in load_order(learners, prebuilt):
        loaded[name] = prebuilt.get(name) or _load(name, learners[name], seed, loaded)
        check_classes(learners[name].model, loaded[name], asked="classifier")
        if learners[name].updates:
            loading_arguments.check_trainable(loaded[name], f"learners.{name}")
        if saved:
            saving.check_exportable(loaded[name], f"learners.{name}")
    return loaded


def _load(name: str, learner: Learner, seed: int, loaded: Mapping[str, Network]) -> Network:
    if base := base_owner(learner):
        return share_base(loaded[base], learner, f"learners.{name}", seed)
    if owner := read_learner(learner.model):
        return build_critic(loaded[owner], learner, f"learners.{name}", seed)
    texts: list[str] = []
    if isinstance(learner.tokenizer, Mapping):
        if "data" not in learner.tokenizer:
            raise ConfigError(f"learners.{name}.tokenizer: a tokenizer from scratch needs data (a task or a file) to be built from.")
        with located(f"learners.{name}.tokenizer"):
            texts = loading.texts(learner.tokenizer["data"])
    with located(f"learners.{name}", **PARTS):
        return load(
            learner.model,
            head=learner.head,
            tokenizer=learner.tokenizer,
            texts=texts,
            max_length=learner.max_length,
            dtype=learner.dtype,
            options={"seed": seed, **learner.options},
        )


def check_started(run_spec: RunSpec, context: RunContext) -> None:
    """What only the networks and the data of a run can tell: tokenizers that differ, sites that a model does not have, and rows."""
    check_tokenizers(run_spec, context)
    _check_sites(run_spec, context)
    check_rows(run_spec, context)


def _check_sites(run_spec: RunSpec, context: RunContext) -> None:
    """Raises ConfigError for a block that an attacked model does not have."""
    for stage in run_spec.stages:
        for name, plan in run_spec.step_plan(stage, strongest=True).active.items():
            backbone = context.learner(name).network.backbone
            for view, adversary in plan.adversaries.items():
                for site in set(adversary.threat.sites) - {"embedding"}:
                    try:
                        perturb.layer(site, backbone)
                    except ConfigError as error:
                        raise ConfigError(f"adversaries.{view}.{error}") from error


def check_tokenizers(run_spec: RunSpec, context: RunContext) -> None:
    """Sampled ids are never re-tokenised: a learner that trains on a rollout must read the sampler's ids."""
    for name, objective in run_spec.config["objectives"].items():
        source = run_spec.config["sources"][objective.source]
        sampler = source.samples_with or objective.learner
        sampler = run_spec.frozen[sampler].learner if sampler in run_spec.frozen else sampler
        if sampler != objective.learner and source.row_type in (RolloutRows, DemoRows):
            vocabularies = [context.encoder(n).tokenizer.get_vocab() for n in (objective.learner, sampler)]
            if vocabularies[0] != vocabularies[1]:
                raise ConfigError(
                    f"objectives.{name}: learner '{objective.learner}' and the sampler '{sampler}' have different tokenizers; "
                    "rollouts are never re-tokenised, so they must share one."
                )


def check_rows(run_spec: RunSpec, context: RunContext) -> None:
    """What a learner could not read of the rows of a source is refused before the first step."""
    sources = run_spec.config["sources"]
    pairs = dict.fromkeys((o.source, o.learner) for o in run_spec.config["objectives"].values())
    samplers = {name: source.samples_with for name, source in sources.items() if source.samples_with is not None}
    for source, learner in dict.fromkeys([*pairs, *((s, samplers[s]) for s, _ in pairs if s in samplers)]):
        context.sources[source].check_rows(context.encoder(learner))


def warn_large_discriminators(sources: Mapping[str, Source], sizes: Mapping[str, int]) -> list[str]:
    """Notes on discriminators that are larger than the policies they score; `sizes`: {learner: number of parameters}."""
    sentences: list[str] = []
    discriminators = {r.scoring_learner for s in sources.values() for r in s.reward_parts if r.scoring_learner is not None}
    for name, source in sources.items():
        policy = source.samples_with or ""
        for scorer in sorted(discriminators & set(sizes)):
            if policy in sizes and sizes[scorer] > sizes[policy] and source.row_type is RolloutRows:
                sentences.append(
                    f"learners.{scorer} has {sizes[scorer]:,} parameters and scores '{policy}' of sources.{name} with {sizes[policy]:,}: "
                    "a discriminator larger than the policy was found to teach it worse (GAD, arXiv:2511.10643)."
                )
    return sentences
