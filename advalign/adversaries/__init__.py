"""Inner maximisers: one file per adversary; `kind` is the file name."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
