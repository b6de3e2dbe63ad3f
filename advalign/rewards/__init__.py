"""One score per rollout, nan abstains: one file per reward."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
