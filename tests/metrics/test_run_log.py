"""The log of a run, read back."""

import json

import pytest

from advalign.errors import ConfigError
from advalign.metrics import run_log
from advalign.metrics.run_log import complete_lines, read
from advalign.training.logs import RunLog

STEP = json.dumps({"step": 1, "loss": 0.5}) + "\n"


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read(tmp_path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st', encoding="utf-8")
    assert complete_lines(path) == ['{"step": 1}', '{"step": 2}']
    assert read(tmp_path) == [{"step": 1}, {"step": 2}]


def test_other_separators_do_not_end_a_line(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"text": "a\u2028b"}\n', encoding="utf-8")
    assert complete_lines(path) == ['{"text": "a\u2028b"}']


@pytest.mark.parametrize("line", ["{", "[]", "null", '{"loss": 1}', '{"step": "x"}', "\x00", '{"step": 2, "lo'])
def test_a_line_that_is_no_step_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_text(STEP + line + "\n" + STEP)
    with pytest.raises(ConfigError, match=r"log\.jsonl, line 2: it is no step of a run"):
        run_log.read(tmp_path)
    with pytest.raises(ConfigError, match=r"log\.jsonl, line 2: it is no step of a run"):
        RunLog(tmp_path, 1)


def test_a_last_line_that_a_kill_cut_is_dropped_and_bytes_are_named(tmp_path):
    (tmp_path / "log.jsonl").write_text(STEP + '{"step": 2, "lo')
    assert run_log.read(tmp_path) == [{"step": 1, "loss": 0.5}]
    (tmp_path / "log.jsonl").write_bytes(STEP.encode() + b"\xff\n")
    with pytest.raises(ConfigError, match="it is not UTF-8 text"):
        run_log.read(tmp_path)
