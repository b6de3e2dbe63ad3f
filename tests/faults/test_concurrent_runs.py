"""Two runs in one folder: the second is refused, whatever it asks for, and the first does not notice."""

import pytest
from faults.processes import assert_same_run, only_all, run, start, wait
from faults.test_signals import until

pytestmark = only_all


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"arguments": {"overwrite_output_dir": True}}])
def test_the_second_is_refused(tmp_path, options):
    folder, errors = tmp_path / "run", tmp_path / "errors"
    first = start("plain", folder, fault="Waits")
    until(tmp_path / "run.waits")
    assert run("plain", folder, errors=str(errors), **options) == 2
    assert f"{folder} is being written to by process {first[0].pid} on " in errors.read_text()
    (tmp_path / "run.go").touch()
    assert wait(first) == [0]
    assert run("plain", tmp_path / "whole") == 0
    assert_same_run(tmp_path / "whole", folder)
