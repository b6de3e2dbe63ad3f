"""Objectives: one formula per file; the file name is the `kind`.

An objective says which outputs it reads on which view, weighs its elements over a whole update, and returns one loss per
element. It averages nothing and does not know whether its view was attacked. What lies off target is never read, nan included.
"""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
