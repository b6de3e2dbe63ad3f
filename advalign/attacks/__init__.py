"""Attacks: one file per attack; `kind` is the file name. They propose, the harness judges."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
