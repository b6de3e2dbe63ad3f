"""The log of a run, read back."""

from advalign.metrics.run_log import complete_lines, read


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
