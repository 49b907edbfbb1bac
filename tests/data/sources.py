"""What the tests of reading share: files to read, and a source's inputs."""

from fnn import data
from fnn.data import _readers as readers


def written(path, content):
    """The path, of a file with this content now."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parts(*args, **options):
    """The arrays x (n, d_in) of a source's parts, one after another."""
    return (part.x for part in data.parts(*args, **options))


def inputs(*args):
    """x (n, d_in) of a source, in one part."""
    (x,) = parts(*args, size=readers.LIMIT + 1)
    return x
