import pytest
from sources import written

from fnn import data


@pytest.fixture
def load(tmp_path):
    """load(text, ...) as `data.load` of a file with this text."""

    def load(content, **options):
        return data.load(written(tmp_path / "a.csv", content), **options)

    return load
