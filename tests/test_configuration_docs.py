import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent


def test_the_page_of_keys_is_what_the_script_writes() -> None:
    path = REPOSITORY / "scripts/write_configuration_table.py"
    spec = importlib.util.spec_from_file_location("write_configuration_table", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    page = (REPOSITORY / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == script.configuration_page(), "run python scripts/write_configuration_table.py"
