"""The target of a model, by its kind and head."""

from advalign.errors import ConfigError, excerpt
from advalign.interfaces import Target
from advalign.models import Network
from advalign.models.pretrained import one_number
from advalign.targets.black_box import BlackBoxModel
from advalign.targets.cache import AnswerCache
from advalign.targets.classifier import ClassifierTarget
from advalign.targets.generator import GeneratorTarget
from advalign.targets.target import NetworkTarget

TARGETS: dict[str, type[NetworkTarget]] = {"classifier": ClassifierTarget, "policy": GeneratorTarget}


def target_of(model: Network | BlackBoxModel, *, cache: AnswerCache | None = None) -> Target:
    """The target of a network or of a black box. `cache`: answers on disk, for classifiers."""
    if isinstance(model, BlackBoxModel):
        return model.target(cache)
    if not isinstance(model, Network):
        raise ConfigError(f"model: {excerpt(repr(model))} given; a Network, AnsweringClassifier or AnsweringGenerator is expected.")
    return network_target(model, cache=cache)


def network_target(network: Network, *, cache: AnswerCache | None = None) -> NetworkTarget:
    """The target of a network."""
    if network.head not in TARGETS:
        raise ConfigError(f"evaluation: a network with head '{network.head}' cannot be attacked; known heads: classifier, policy.")
    if network.head == "classifier" and network.num_classes < 2:
        raise one_number(f"the {type(network.model).__name__} under attack gives one number per text")
    return TARGETS[network.head](network, cache=cache)


__all__ = ["network_target", "target_of"]
