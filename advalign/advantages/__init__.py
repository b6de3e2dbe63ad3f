"""Advantage estimators: from the rewards of a whole draw to an advantage per token."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
