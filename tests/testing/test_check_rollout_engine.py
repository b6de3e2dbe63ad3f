"""check_rollout_engine passes the engine of this process, and names the slip of each broken one."""

from dataclasses import dataclass, replace

import pytest
import torch

from advalign.rollout import HF
from advalign.testing import check_rollout_engine


@dataclass(frozen=True, kw_only=True)
class Whole(HF):
    """The engine itself, to be broken."""


class Short(Whole):
    def generate(self, network, examples, n, sampling, generator):
        return super().generate(network, examples, n - 1, sampling, generator)


class Backwards(Whole):
    def generate(self, network, examples, n, sampling, generator):
        return super().generate(network, examples, n, sampling, generator)[::-1]


class AtTemperatureOne(Whole):
    """Log-probabilities of half the logits, as if the temperature had been left out."""

    def generate(self, network, examples, n, sampling, generator):
        groups = super().generate(network, examples, n, sampling, generator)
        for group in groups:
            group.rollouts = [replace(r, sampler_logprobs=[x - 0.1 for x in r.sampler_logprobs]) for r in group.rollouts]
        return groups


class OwnStream(Whole):
    def generate(self, network, examples, n, sampling, generator):
        return super().generate(network, examples, n, sampling, torch.Generator().manual_seed(0))


class GlobalStream(Whole):
    def generate(self, network, examples, n, sampling, generator):
        seed = int(torch.randint(2**31, ()))
        return super().generate(network, examples, n, sampling, torch.Generator().manual_seed(seed))


class SkipsNothing(Whole):
    def skip(self, generator, number, sampling):
        return True


class NeverGreedy(Whole):
    def generate(self, network, examples, n, sampling, generator):
        return super().generate(network, examples, n, replace(sampling, temperature=sampling.temperature or 1.0), generator)


SLIPS = {
    Short: "2 rollouts where 3",
    Backwards: "not in the order of the examples",
    AtTemperatureOne: "differ from the policy's by up to 0.1 nats",
    OwnStream: "the generator decides nothing",
    GlobalStream: "draw from the generator given",
    SkipsNothing: "skip.generator, 6. leaves out other draws",
    NeverGreedy: "temperature 0 is not greedy",
}


def test_the_engine_of_this_process_keeps_the_contract():
    check_rollout_engine(HF())


@pytest.mark.parametrize(("cls", "says"), SLIPS.items(), ids=lambda x: getattr(x, "__name__", ""))
def test_a_slip_is_named(cls, says):
    with pytest.raises(AssertionError, match=rf"{cls.__name__}: .*({says})"):
        check_rollout_engine(cls())
