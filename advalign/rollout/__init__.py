"""Rollout engines: who samples from a policy."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
