"""Advantage estimators: rewards of a whole draw -> what each token is worth. One file each; the file name is the `kind`."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
