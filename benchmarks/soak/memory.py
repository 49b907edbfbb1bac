"""What is in use at the end of one long `fit` that saves as it goes."""

import sys
from pathlib import Path
from typing import Any

import jax

import fnn
from fnn import checkpoint, data


def memory(folder: Path, epochs: int) -> dict[str, Any]:
    """Resident memory, the history's share of it, and live arrays, spread over one run."""
    examples = data.load("digits")
    x = data.Scaling.of(examples.x).apply(examples.x)[:256]
    seen: list[tuple[int, float, float, int]] = []

    def look(number: int, state: Any, record: dict[str, float]) -> None:
        if number % (epochs // 20) == 0:
            checkpoint.save(folder / "memory", state)
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            an_epoch = sys.getsizeof(record) + sum(map(sys.getsizeof, record.values())) + 8
            sizes = pages * 4096 / 2**20, number * an_epoch / 2**20
            seen.append((number, *sizes, len(jax.live_arrays())))

    fnn.fit(
        fnn.mlp((64, 32, 10)),
        fnn.softmax_cross_entropy,
        fnn.adam(1e-4),
        (x, examples.y[:256]),
        key=jax.random.key(0),
        epochs=epochs,
        batch_size=64,
        validation=(x, examples.y[:256]),
        on_epoch=look,
    )
    print("memory   epoch  resident MiB  of it history  live arrays")
    for number, size, history, arrays in [*seen[:-1:4], seen[-1]]:
        print(f"       {number:7} {size:13.2f} {history:14.2f} {arrays:12}")
    (_, first, first_history, _), (_, last, last_history, _) = seen[len(seen) // 2], seen[-1]
    grown = (last - last_history) - (first - first_history)
    print(f"         grown in the second half, beside the history: {grown:.2f} MiB")
    assert len({arrays for *_, arrays in seen}) == 1, "live arrays pile up"
    assert grown < 1, f"memory grew by {grown} MiB beside the history"
    return {"epochs": epochs, "samples": seen, "grown_beside_history_mib": grown}
