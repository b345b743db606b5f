"""What the package brings along of others is what its documentation says."""

import hashlib
from pathlib import Path

from clip_hba_behavior.report.site import PLOTLY, PLOTLY_LICENSE

REPOSITORY = Path(__file__).parents[2]
VENDOR = REPOSITORY / "clip_hba_behavior/report/vendor"


def test_plotly_is_the_release_that_is_named_with_its_licence() -> None:
    content = (VENDOR / PLOTLY).read_bytes()
    page = (REPOSITORY / "docs/dependencies.md").read_text(encoding="utf-8")
    assert hashlib.sha256(content).hexdigest() in page
    assert f"`{PLOTLY}`" in page
    assert len(content) < 1.8e6
    version = PLOTLY.removeprefix("plotly-cartesian-").removesuffix(".min.js")
    assert f"plotly.js (cartesian - minified) v{version}".encode() in content[:200]
    assert "MIT" in (VENDOR / PLOTLY_LICENSE).read_text()
    assert {each.name for each in VENDOR.iterdir()} == {PLOTLY, PLOTLY_LICENSE}
