"""Fields without a default: what each attack that has some is built with."""

import functools
import tempfile

from helpers import victims


@functools.cache
def attacker():
    """A small language model in a folder, which stands for a trained attacker."""
    folder = tempfile.mkdtemp()
    victims.generator_model().save_pretrained(folder)
    return folder


# What an attack cannot do without.
REQUIRED = {
    "beast": lambda: {"length": 8},  # the victim reads 32 tokens
    "function": lambda: {"fn": lambda target, prompt, rng: (f"{prompt} {rng.random()}" for _ in range(3))},
    "learned": lambda: {"model": attacker()},
    "many_shot": lambda: {"shots": victims.sums()},
}
