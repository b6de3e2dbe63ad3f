"""How a run uses several processes."""

import pytest

from advalign.errors import ConfigError
from advalign.training import distributed


def test_a_second_precision_in_one_process_is_refused():
    distributed.accelerator("no")
    with pytest.raises(ConfigError, match=r"^args\.mixed_precision: bf16 given, and this process began with another one"):
        distributed.accelerator("bf16")
