from clip_hba_behavior.run.environment import _PACKAGE, SOURCES


def test_every_pattern_of_sources_names_modules_that_exist() -> None:
    assert all(list(_PACKAGE.glob(pattern)) for pattern in SOURCES)
