"""Rewards: one score per rollout; nan abstains."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
