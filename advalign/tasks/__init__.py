"""Procedural tasks with their own verifiers; splits train, test and ood never share a prompt: one file per task."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
