"""Data files of every form with random damage: arrays that fit together, or DataError?"""

import gzip
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fnn import data


def fuzz(folder: Path, each: int, seed: int) -> dict[str, int]:
    """Good data files of each form, damaged again and again."""
    rng = random.Random(seed)
    x, y = np.arange(24.0).reshape(8, 3) / 7, np.array([0, 1] * 4)
    folder = folder / "fuzz"
    (folder / "idx").mkdir(parents=True)
    (folder / "gz").mkdir()
    np.savez(folder / "a.npz", x=x, y=y)
    np.savez_compressed(folder / "b.npz", x=x, y=y)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    rows = "".join(
        f"{a:.3f},{b:.3f},{c:.3f},{k}\n" for (a, b, c), k in zip(x, "aabbccdd", strict=True)
    )
    (folder / "a.csv").write_text("u,v,w,kind\n" + rows)
    (folder / "b.csv.gz").write_bytes(gzip.compress(rows.encode()))
    idx = {
        "train-images-idx3-ubyte": struct.pack(">4B3I", 0, 0, 8, 3, 8, 3, 2) + bytes(range(48)),
        "train-labels-idx1-ubyte": struct.pack(">4BI", 0, 0, 8, 1, 8) + bytes([0, 1] * 4),
    }
    for name, content in idx.items():
        (folder / "idx" / name).write_bytes(content)
        (folder / "gz" / f"{name}.gz").write_bytes(gzip.compress(content))
    pair = (folder / "x.npy", folder / "y.npy")
    sources: dict[Path, Any] = {path: path for path in folder.iterdir() if path.is_file()}
    sources |= dict.fromkeys(pair, pair)
    sources |= {path: path.parent for name in ("idx", "gz") for path in (folder / name).iterdir()}
    read = refused = 0
    for path, source in sources.items():
        whole = path.read_bytes()
        for _ in range(each):
            path.write_bytes(damaged(whole, rng))
            try:
                found = data.load(source)
            except data.DataError:
                refused += 1
                continue
            read += 1
            assert len(found.x) == len(found.y) > 0
            assert not np.isinf(found.x).any()
            assert found.columns or np.isfinite(found.x).all()  # of a table, NaN is a blank
            assert np.isfinite(found.y).all()
            assert not found.classes or 0 <= found.y.min() <= found.y.max() < len(found.classes)
        path.write_bytes(whole)
    return {"inputs": read + refused, "refused": refused, "sound": read}


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """The bytes with one to eight pieces changed, removed, repeated or inserted."""
    changed = bytearray(whole)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at, length = rng.randrange(len(changed) or 1), rng.randrange(1, 9)
        match rng.randrange(5):
            case 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                changed[at : at + 1] = bytes([rng.choice(b"\x00\xff,;\n\"0-'(")])
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = changed[at : at + length]
            case 4:
                changed[at:at] = rng.choice([b"nan", b"1e999", b"inf", b"\xff\xfe", b"\x80\x05"])
    return bytes(changed)
