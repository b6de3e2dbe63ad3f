"""Sources: the rows that objectives read.

A started source draws host-side items; every learner builds its own rows from them.
"""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
