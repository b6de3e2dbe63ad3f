"""Sources: which rows an objective sees. A started source row_type host-side items; every learner builds its own rows of them."""

from advalign import plugins

__getattr__ = plugins.lazy(__name__)
