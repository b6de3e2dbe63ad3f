"""One writer per folder, and names that stay inside it."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from advalign.errors import ConfigError
from advalign.run_folder import LOCK, OWNER, check_name, locked

HOLD = """
import sys, time
from advalign.run_folder import locked

with locked(sys.argv[1], "args.output_dir"):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder):
    """A process that holds the lock of a folder until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_writer_is_refused_and_told_who_is_the_first(tmp_path):
    with holder(tmp_path / "run") as first:
        with pytest.raises(ConfigError) as refused, locked(tmp_path / "run", "eval --output"):
            pass
        text = str(refused.value)
        assert text.startswith(f"eval --output: {tmp_path / 'run'} is being written to by process {first.pid} on {platform.node()}, since ")
        assert text.endswith("; wait until it ends, stop it, or give another folder.")
        assert "\n" not in text
        # Refusing takes nothing from the holder: its name is still there, and so is its lock.
        assert json.loads((tmp_path / "run" / OWNER).read_text())["pid"] == first.pid
        with pytest.raises(ConfigError, match=f"process {first.pid} "), locked(tmp_path / "run", "eval --output"):
            pass


def test_the_lock_of_a_killed_process_blocks_nobody(tmp_path):
    with holder(tmp_path) as first:
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / LOCK).exists()
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == first.pid
        with locked(tmp_path, "args.output_dir"):
            assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / OWNER).exists()


def test_one_process_cannot_write_twice_either_and_may_write_again(tmp_path):
    with locked(tmp_path, "args.output_dir"):
        with pytest.raises(ConfigError, match=f"process {os.getpid()} "), locked(tmp_path, "args.output_dir"):
            pass
        with locked(tmp_path / "other", "args.output_dir"):  # another folder is another lock
            pass
    for _ in range(2):
        with pytest.raises(KeyError), locked(tmp_path, "args.output_dir"):
            raise KeyError("whatever ends the run releases the lock")
    with locked(tmp_path, "args.output_dir"):
        pass


def test_a_holder_that_has_not_said_who_it_is(tmp_path):
    for content in ("", "[]", '{"pid": 3}', "\0"):
        with locked(tmp_path, "args.output_dir"):
            (tmp_path / OWNER).write_text(content)
            with pytest.raises(ConfigError, match="written to by another process;"), locked(tmp_path, "args.output_dir"):
                pass


def test_what_cannot_be_written_to_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, reason in (
        (tmp_path / "file", f"{tmp_path / 'file'} is a file"),
        (tmp_path / "file" / "run", f"{tmp_path / 'file'} is a file"),
        (Path("/proc/advalign"), "No such file or directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(ConfigError) as refused, locked(folder, "args.output_dir"):
            pass
        assert str(refused.value) == f"args.output_dir: {folder} cannot be written to ({reason}); give a folder that can."
    with pytest.raises(ConfigError, match=r"^args\.output_dir: 'a\\x00b' holds a NUL"), locked("a\0b", "args.output_dir"):
        pass


def test_names_of_files():
    for name in ("policy", "policy_2", "a-b", "v1.5", "A", "_", "-", "0", "x" * 64, "console", "com", "nullify", "a..b"):
        check_name(name, "learners")
    lookalikes = ("pоlicy", "policy\u200b", "\u202epolicy", "poli\u0301cy", "ﬁne", "∕abs", "．．", "１")
    controls = ("a\0b", "a\nb", "a\n", "\n", "a\tb", "\x1b[31m", "a\x7f", "\ud800")
    paths = ("../x", "/abs", "a/b", "a\\b", "C:x", ".", "..", ".hidden", "a.", "", " ", " a", "a ", "~", "a:b", "*", "x" * 65, "x" * 5000)
    devices = ("con", "CON", "nul", "NUL.txt", "aux", "prn", "com1", "LPT9.x")
    for name in (*lookalikes, *controls, *paths, *devices, 3, True, None):
        with pytest.raises(ConfigError) as refused:
            check_name(name, "learners")
        text = str(refused.value)
        assert text.startswith("learners: ")
        assert " given as a name, and files are named after it; use 1 to 64 letters" in text
        assert text.isascii()
        assert text.isprintable()
        assert len(text) < 320
