"""What README.md quotes stands in the result files."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_readme_tables_are_those_of_the_result_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.filled(text) == text
    for path in tables.RESULTS.glob("*.json"):
        assert f"<!-- results: {path.stem} -->\n**" in text, f"{path.name} is quoted nowhere"
