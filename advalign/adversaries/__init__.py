"""Adversaries: what perturbs a view, the inner maximisation of adversarial training."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
