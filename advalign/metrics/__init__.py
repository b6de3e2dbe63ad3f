"""Numbers about what models answer, without an attack: `utility` and `diversity`; and the log of a run, read back (`run_log`)."""
