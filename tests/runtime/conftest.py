"""Each file of tests has its own list of exports: the same small graphs are exports here, and foreign files there."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def list_of_exports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("exports")))
        yield
