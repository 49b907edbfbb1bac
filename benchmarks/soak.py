"""What is promised never to happen, tried many times: growth, loss, damage unseen, a crash.

memory   one long `fit` that saves as it goes: is more memory in use at its end?
kills    `fnn train --resume` killed with SIGKILL at random instants: are the final files the
         bytes of a run that never stopped?
damage   bits flipped in, bytes cut off and put behind a run's file: is each refused?
fuzz     data files of every form with random damage: arrays that fit together, or DataError?
notice   the time of an epoch with and without its flag of finiteness
"""

import gzip
import random
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fnn
from fnn import checkpoint, data
from fnn.atomic import UNFINISHED
from fnn.cli import runs
from fnn.fitting import all_finite
from fnn.training import make_epoch


def run(quick: bool) -> dict[str, Any]:
    """All five parts. Raises AssertionError where a promise is not kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            "memory": memory(folder, epochs=2_000 if quick else 40_000),
            "kills": kills(folder, wanted=3 if quick else 50),
            "damage": damage(folder, each=2_000 if quick else 100_000),
            "fuzz": fuzz(folder, each=500 if quick else 20_000),
            "notice": notice(rounds=20 if quick else 100),
        }


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


def kills(folder: Path, wanted: int) -> dict[str, Any]:
    """Runs killed again and again until they are done, each compared with one in one go."""
    rng = random.Random(0)
    command = [sys.executable, "-um", "fnn", "train", "iris", "--hidden", "8", "--epochs", "400"]

    def contents(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in out.iterdir()}

    subprocess.run([*command, "--out", folder / "whole"], check=True, capture_output=True)
    whole = contents(folder / "whole")
    killed, while_writing, before_first, compared = 0, 0, 0, 0
    while killed < wanted or compared == 0:
        out = folder / f"killed-{compared}"
        args = [*command, "--save-every", "0", "--resume", "--out", str(out)]
        epochs_to_live = rng.choice([0, rng.randrange(1, 60)])
        with subprocess.Popen(args, stdout=-1, stderr=-3, text=True) as child:
            for line in child.stdout:
                epochs_to_live -= line.startswith("epoch")
                early = line.startswith("gradient")
                if killed < wanted and epochs_to_live == 0 and (early or line.startswith("epoch")):
                    time.sleep(rng.uniform(0, 2 if early else 0.02))
                    child.kill()
                    break
        if child.returncode == 0:
            assert contents(out) == whole, "a run that was killed and resumed ended otherwise"
            compared += 1
            continue
        assert child.returncode == -signal.SIGKILL, f"exit code {child.returncode}"
        killed += 1
        while_writing += any(out.glob(f"*{UNFINISHED}")) if out.exists() else 0
        if (out / runs.FILE).exists():
            runs.load(out)
        else:
            before_first += 1
    print(
        f"kills    {killed} survived, {before_first} of them before the first save and "
        f"{while_writing} in the middle of a write; {compared} runs ended in the same bytes"
    )
    return {
        "kills": killed,
        "before_first_save": before_first,
        "while_writing": while_writing,
        "compared": compared,
    }


def damage(folder: Path, each: int) -> dict[str, int]:
    """A run's file with one bit flipped, or cut, or continued, or a piece of it changed."""
    settings = runs.Settings((4,), "tanh", "adam", 0.01, 32, 1, seed=0)
    trained, examples = runs.prepare("iris", settings)
    trained = runs.train(trained, examples, lambda newest: None)
    runs.save(folder, trained)
    path = folder / runs.FILE
    whole = path.read_bytes()
    rng = random.Random(0)

    def refused(changed: bytes) -> bool:
        path.write_bytes(changed)
        try:
            runs.load(folder)
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
        "bits": sum(refused(flipped(bit)) for bit in bits),
        "cuts": sum(refused(whole[:length]) for length in cuts),
        "continued": sum(refused(whole + rng.randbytes(i % 40 + 1)) for i in range(each // 10)),
        "pieces": sum(refused(piece()) for _ in range(each // 10)),
    }
    assert counts["bits"] == len(bits)
    assert counts["cuts"] == len(cuts)
    assert counts["continued"] == counts["pieces"] == each // 10
    assert not refused(whole)
    print(
        f"damage   all refused: {counts['bits']} of {8 * len(whole)} single bits flipped, "
        f"{counts['cuts']} cuts, {counts['continued']} continued, {counts['pieces']} pieces changed"
    )
    return {"file_bytes": len(whole), **counts}


def fuzz(folder: Path, each: int) -> dict[str, int]:
    """Good data files of each form, damaged again and again."""
    rng = random.Random(0)
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
            path.write_bytes(_damaged(whole, rng))
            try:
                found = data.load(source)
            except data.DataError:
                refused += 1
                continue
            read += 1
            assert len(found.x) == len(found.y) > 0
            assert np.isfinite(found.x).all()
            assert np.isfinite(found.y).all()
            assert not found.classes or 0 <= found.y.min() <= found.y.max() < len(found.classes)
        path.write_bytes(whole)
    print(f"fuzz     {read + refused} inputs: {refused} refused by DataError, {read} sound")
    return {"inputs": read + refused, "refused": refused, "sound": read}


def _damaged(whole: bytes, rng: random.Random) -> bytes:
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


def notice(rounds: int) -> dict[str, Any]:
    """Medians of alternating epochs, in milliseconds: as it is, and with its flag."""
    results = {}
    print("notice   network, batch, examples     plain ms  watched ms  ratio")
    for sizes, batch, n in (
        ((64, 32, 10), 32, 1437),
        ((64, 32, 10), 1437, 1437),
        ((784, 512, 256, 10), 128, 2560),
    ):
        network, optimizer = fnn.mlp(sizes), fnn.adam(1e-3)
        epoch = make_epoch(network, fnn.softmax_cross_entropy, optimizer, batch)
        state = optimizer.init(network.init(jax.random.key(0)))
        x = jax.random.normal(jax.random.key(1), (n, sizes[0]))
        y = jnp.arange(n) % 10

        def watched(state: Any, examples: Any, key: Any, epoch: Callable = epoch) -> Any:
            state, value = epoch(state, examples, key)
            return state, value, all_finite((state, value))

        kinds = {"plain": jax.jit(epoch), "watched": jax.jit(watched)}
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for i in range(rounds + 2):
            for name, f in kinds.items():
                start = time.perf_counter()
                out = jax.block_until_ready(f(state, (x, y), jax.random.key(i)))
                if name == "watched":
                    bool(out[2])
                if i > 1:
                    times[name].append(1e3 * (time.perf_counter() - start))
        plain, flagged = (statistics.median(times[name]) for name in ("plain", "watched"))
        name = f"{'-'.join(map(str, sizes))}, {batch}, {n}"
        results[name] = {"plain_ms": plain, "watched_ms": flagged, "ratio": flagged / plain}
        print(f"         {name:28} {plain:9.3f}  {flagged:10.3f}  {flagged / plain:5.3f}")
    return results


if __name__ == "__main__":
    run(quick="--quick" in sys.argv)
