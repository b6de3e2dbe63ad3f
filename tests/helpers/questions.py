"""Functions that a bounded process is asked for, most of which must not end well."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path


def act(what, value):
    """Does `what`."""
    if what == "say":
        yield value
        yield "done"
        return
    if what == "half":
        yield "first"
    if what in ("loop", "half"):
        while True:
            pass
    if what == "regex":
        re.search("(a+)+$", "a" * 60 + "b")
    if what == "tower":
        9**9**9**9
    if what == "recursion":
        next(act("recursion", value))
    if what == "memory":
        bytearray(1 << 40)
    if what == "exit":
        sys.exit(5)
    if what == "raise":
        raise ValueError(value)
    if what == "write":
        (Path(value) / "written").write_text("x")
    if what == "touch":
        (Path(value) / "touched").touch()
    if what == "remove":
        (Path(value) / "kept").unlink()
    if what == "start":
        subprocess.run([sys.executable, "-c", ""])
    if what == "shell":
        os.system("true")
    if what == "connect":
        socket.create_connection(("127.0.0.1", 9))
    if what == "fork":
        os.fork()
    yield "done all the same"
