"""What the documents quote stands in the result files."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tables_are_those_of_the_result_files(monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page, text in tables.documents().items():
        assert page.read_text(encoding="utf-8") == text, f"{page}: run `make tables`"
    pages = (Path("README.md"), *Path("docs").glob("*.md"), *Path("docs/experiments").glob("*.md"))
    documents = "".join(page.read_text(encoding="utf-8") for page in pages)
    for path in tables.RESULTS.glob("*.json"):  # speed.json has a table per part
        names = tables.tables_speed.SECTIONS if path.stem == "speed" else [path.stem]
        for name in names:
            assert f"<!-- results: {name} -->\n**" in documents, f"{path.name} is quoted nowhere ({name})"
