"""Attacks: searches for inputs that break a model. They propose; the harness judges."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
