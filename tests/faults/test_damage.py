"""A byte that has changed anywhere in a checkpoint is seen before it is used, and the offer that is made then holds."""

import random
import re
import shutil
from pathlib import Path

import pytest
from faults import runs
from faults.processes import ALL, assert_same_run, only_all, run

from advalign.errors import ConfigError
from advalign.training import checkpoint

PER_FILE = 20 if ALL else 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "run"
    runs.trainer("games" if ALL else "plain", folder, save_total_limit=None).train(progress=False)
    return folder


def test_no_changed_byte_of_any_file_goes_unseen(folder):
    """Flipped bits, cuts and zeroed blocks at random places of every file."""
    rng, path = random.Random(0), folder / "checkpoint-6"
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    assert len(files) >= 4
    for file in files:
        whole = file.read_bytes()
        for _ in range(PER_FILE):
            position = rng.randrange(len(whole))
            flipped = bytes([whole[position] ^ (1 << rng.randrange(8))])
            for content in (whole[:position] + flipped + whole[position + 1 :], whole[:position]):
                file.write_bytes(content)
                with pytest.raises(
                    ConfigError, match=r"checkpoint-6 is damaged: [^\n]*; checkpoint-4 is whole, continue with --resume-from "
                ):
                    checkpoint.check_whole(path)
        file.write_bytes(whole)
    checkpoint.check_whole(path)


@only_all
def test_what_is_offered_ends_with_the_same_bytes(folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    state = bytearray((broken / "checkpoint-6" / "state.pt").read_bytes())
    state[len(state) // 2] ^= 4
    (broken / "checkpoint-6" / "state.pt").write_bytes(state)
    arguments = {"save_total_limit": None}
    assert run("games", broken, resume=True, errors=str(tmp_path / "errors"), arguments=arguments) == 2
    offered = re.search(r"--resume-from (\S+)\.$", (tmp_path / "errors").read_text())
    assert Path(offered[1]) == broken / "checkpoint-4"
    assert run("games", broken, resume=offered[1], arguments=arguments) == 0
    assert_same_run(folder, broken)
