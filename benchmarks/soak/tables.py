"""Tables as text with random damage, and encodings that someone has made: arrays that fit
together, or DataError?

Not of Parquet and Arrow: a damaged file can make Polars' reader end the process, where it asks for
more memory than there is.
"""

import gzip
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.soak.fuzz import damaged
from fnn import data
from fnn.data import Encoding
from fnn.data.encoding import features_of

WORDS: list[Any] = [None, True, 0, -1, 2**80, 0.5, float("nan"), float("inf"), "", "number"]
WORDS += ["category", "date", "time", "%d/%m/%Y", "decimal commas", "year", ["year"], ["a", "a"]]
WORDS += [[], [1], {}, {"a": 1}, [[1]], "\ud800", "a" * 300, ["x"] * 100]


def tables(folder: Path, each: int, seed: int) -> dict[str, int]:
    """Good tables with numbers, text, dates, times and blanks, damaged again and again. What can
    be read is encoded; parts of it are the whole."""
    rng = random.Random(seed)
    folder.mkdir(exist_ok=True)
    frame = pl.DataFrame(
        {
            "a": [None, 1.5, -2.25, 1e9, 0.0, 3.0, 7.125, 8.0],
            "b": ["u", "v", "w x", "u", None, "v", "é", 'q"'],
            "c": [f"2020-0{i}-1{i}" for i in range(1, 9)],
            "d": [f"1{i}:30" for i in range(8)],
            "e": [f"{i},25" for i in range(8)],
            "y": [0.5 * i for i in range(8)],
        }
    )
    whole: dict[str, bytes] = {}
    for name, write in {
        "a.csv": frame.write_csv,
        "b.tsv": lambda f: frame.write_csv(f, separator="\t"),
        "c.csv": lambda f: frame.write_csv(f, separator=";", quote_style="always"),
    }.items():
        content = io.BytesIO()
        write(content)
        whole[name] = content.getvalue()
    whole["f.csv.gz"] = gzip.compress(whole["a.csv"])
    counts = {"inputs": 0, "refused": 0, "sound": 0}
    for name, content in whole.items():
        path = folder / name
        for _ in range(each):
            path.write_bytes(damaged(content, rng))
            counts["inputs"] += 1
            try:
                found = data.load(path)
                encoding = Encoding.of(found)
                z = encoding.apply(encoding.aligned(found).x)
            except data.DataError as error:
                lines = str(error).splitlines()
                assert len(lines) == 1, lines
                counts["refused"] += 1
                continue
            counts["sound"] += 1
            assert len(found.x) == len(found.y) == len(z) > 0
            assert z.shape[1] == encoding.width
            assert np.isfinite(z).all()
            assert np.isfinite(found.y).all()
            assert not found.classes or 0 <= found.y.min() <= found.y.max() < len(found.classes)
            if rng.random() < 0.1:
                assert _same(path, encoding, rng)
    return counts


def _same(path: Path, encoding: Encoding, rng: random.Random) -> bool:
    """Whether the file in parts is the file."""
    try:
        (whole,) = data.parts(path, encoding)
    except data.DataError:
        return True
    parts = data.parts(path, encoding, size=rng.choice([1, 20, 50, 10**6]))
    return bool(np.array_equal(np.concatenate([p.x for p in parts]), whole.x, equal_nan=True))


def encodings(folder: Path, wanted: int, seed: int) -> dict[str, int]:
    """The columns in a run's file with one to three entries replaced: refused, or features of
    sound types that encode what they say they do."""
    rng = random.Random(seed)
    good = [
        {"name": "a", "kind": "number", "fill": 3.0, "flag": True, "form": "decimal commas"},
        {"name": "b", "kind": "category", "values": ["x", "y"], "rest": True},
        {"name": "c", "kind": "date", "fill": 18000.0, "cycles": ["year", "week"]},
        {"name": "d", "kind": "time", "left_out": "no values"},
        {"name": "e", "kind": "text", "rest": 16},
    ]
    counts = {"inputs": 0, "refused": 0, "sound": 0}
    x = np.array([[np.nan], [-1.0], [0.0], [1e6]])
    for _ in range(wanted):
        entries: list[Any] = [dict(entry) for entry in good]
        for _ in range(rng.randrange(1, 4)):
            entry = rng.choice(entries)
            if rng.random() < 0.05 or not isinstance(entry, dict):
                entries[rng.randrange(5)] = rng.choice(WORDS)
                continue
            keys = ["name", "kind", "left_out", "fill", "flag", "cycles", "values", "rest", "form"]
            key = rng.choice(keys if rng.random() < 0.95 else ["other"])
            entry[key] = rng.choice(WORDS)
        counts["inputs"] += 1
        try:
            features = features_of(entries)
        except (TypeError, ValueError, OverflowError):
            counts["refused"] += 1
            continue
        counts["sound"] += 1
        for feature in features:
            if feature.width:
                cells = (
                    np.repeat(np.nan_to_num(x), feature.rest, 1) if feature.kind == "text" else x
                )
                found = np.concatenate(feature.inputs(cells), -1)
                assert found.shape == (4, feature.width), feature
                assert np.isfinite(found).all(), feature
    return counts
