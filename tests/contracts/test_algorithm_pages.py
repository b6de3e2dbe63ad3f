"""Every objective and advantage has a provenance page, and the configuration shown on it builds."""

import re
from pathlib import Path

import pytest
import yaml

from advalign import config, plugins

PAGES = Path(plugins.__file__).parents[1] / "docs" / "algorithms"
TABLE = [(room, kind) for room in ("objectives", "advantages") for kind in plugins.kinds(room)]


@pytest.mark.parametrize(("room", "kind"), TABLE)
def test_page_names_its_source_and_shows_a_configuration_that_builds(room, kind):
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    assert "**Source.**" in text
    assert "**Deviations.**" in text
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    cls, built = plugins.resolve(room, kind), []
    for block in blocks:
        found = config.sections(yaml.safe_load(block))
        built += found.get("objectives", {}).values()
        built += [source.advantage for source in found.get("sources", {}).values() if hasattr(source, "advantage")]
    assert any(isinstance(x, cls) for x in built)
