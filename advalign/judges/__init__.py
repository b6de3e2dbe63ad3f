"""Judges: what decides whether an answer is a violation."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
