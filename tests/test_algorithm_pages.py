"""Every objective and advantage has a provenance page, and the configuration shown on it builds."""

import re
from pathlib import Path

import pytest
import yaml

from advalign import config, plugins

PAGES = Path(plugins.__file__).parents[1] / "docs" / "algorithms"
TABLE = [(group, kind) for group in ("objectives", "advantages") for kind in plugins.kinds(group)]


@pytest.mark.parametrize(("group", "kind"), TABLE)
def test_page_names_its_source_and_shows_a_configuration_that_builds(group, kind):
    text = (PAGES / f"{kind}.md").read_text(encoding="utf-8")
    assert "**Source.**" in text
    assert "**Deviations.**" in text
    blocks = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    cls, objects = plugins.resolve(group, kind), []
    for block in blocks:
        sections = config.sections(yaml.safe_load(block))
        objects += sections.get("objectives", {}).values()
        objects += [source.advantage_estimator for source in sections.get("sources", {}).values()]
    assert any(isinstance(x, cls) for x in objects)
