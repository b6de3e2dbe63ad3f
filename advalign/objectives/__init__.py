"""Objectives: the summands of a learner's loss, one formula per file.

An objective says which outputs it reads on which view, weighs its elements over a whole update, and returns one loss per
element. It does not average and does not know whether its view was attacked. Positions off target are never read, nan included.
"""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
