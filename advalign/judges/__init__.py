"""Judges: one file per judge; `kind` is the file name. They read an answer and say whether it is as it should be."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
