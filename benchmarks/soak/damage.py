"""A run's file with bits flipped, cut, and continued: is each refused?"""

import random
from pathlib import Path

from fnn import checkpoint, runs
from fnn.runs import files, training


def damage(folder: Path, each: int, seed: int) -> dict[str, int]:
    """A run's file with one bit flipped, or cut, or continued, or a piece of it changed."""
    settings = runs.Settings((4,), "tanh", "adam", 0.01, 32, 1, seed=0)
    trained, examples = training.prepare("iris", settings)
    trained = training.advance(trained, examples, lambda newest: None)
    files.save(folder, trained)
    path = folder / files.FILE
    whole = path.read_bytes()
    rng = random.Random(seed)

    def refused(changed: bytes) -> bool:
        path.write_bytes(changed)
        try:
            files.load(folder)
        except checkpoint.CheckpointError:
            return True
        return False

    def flipped(bit: int) -> bytes:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    def piece() -> bytes:
        start = rng.randrange(len(whole))
        stop = min(len(whole), start + rng.randrange(1, 64))
        changed = whole[:start] + rng.randbytes(stop - start) + whole[stop:]
        return changed if changed != whole else flipped(start * 8)

    bits = range(8 * len(whole))
    bits = bits if len(bits) <= each else rng.sample(bits, each)
    cuts = range(len(whole)) if len(whole) <= each else rng.sample(range(len(whole)), each)
    counts = {
        "inputs": 0,
        "bits": sum(refused(flipped(bit)) for bit in bits),
        "cuts": sum(refused(whole[:length]) for length in cuts),
        "continued": sum(refused(whole + rng.randbytes(i % 40 + 1)) for i in range(each)),
        "pieces": sum(refused(piece()) for _ in range(each)),
    }
    assert counts["bits"] == len(bits)
    assert counts["cuts"] == len(cuts)
    assert counts["continued"] == counts["pieces"] == each
    assert not refused(whole)
    return counts | {"inputs": sum(counts.values())}
