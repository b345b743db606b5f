import importlib.util
import inspect
from pathlib import Path
from typing import get_args

from clip_hba_behavior.cli.training import fork
from clip_hba_behavior.config import PerturbType

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


def test_every_kind_of_perturbation_is_described_and_offered() -> None:
    page = (REPOSITORY / "docs/PERTURBATIONS.md").read_text(encoding="utf-8")
    offered = str(inspect.signature(fork).parameters["perturb"].annotation.__metadata__[0].help)
    for kind in get_args(PerturbType):
        assert f"| `{kind}` |" in page
        assert kind in offered
