"""Tasks: procedural problems with their own verifier.

The splits train, test and ood never share a prompt.
"""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
