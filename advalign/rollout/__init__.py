"""Rollout engines: what samples responses from a policy."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
