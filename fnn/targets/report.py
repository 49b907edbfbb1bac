"""The report of a function compiled for a target."""

import json
from typing import NamedTuple

from fnn.targets.program import Loop


class Report(NamedTuple):
    """A program compiled for devices that need not be present. Nothing in it is measured.

    Bytes and flops are per device. flops: of the matrix products in the function, loops multiplied
    by their trips. collectives: {kind: (number, bytes that a device sends around a ring)};
    overlapped: {kind: number that overlap with kernels}. seconds, and those of loops, are modelled
    by XLA, without the time to launch kernels and mostly without communication: None if XLA has no
    model. share: flops / seconds relative to the device's published bfloat16 peak. If the program
    does not fit in memory, fits is False, text is the compiler's message, and what is not in the
    message is None.

    >>> kernels, time = {"fusion": 1}, 1e-5
    >>> report = Report("H100", 1, True, 8, 0, 4, 8e10, 2e9, kernels, (), {}, {}, time, 0.2, "")
    >>> report.fits, json.loads(report.to_json())["kernels"]
    (True, {'fusion': 1})
    """

    target: str
    devices: int
    fits: bool
    argument_bytes: int
    temp_bytes: int | None
    result_bytes: int | None
    memory: float
    flops: float
    kernels: dict[str, int]
    loops: tuple[Loop, ...]
    collectives: dict[str, tuple[int, float]]
    overlapped: dict[str, int]
    seconds: float | None
    share: float | None
    text: str

    def to_json(self) -> str:
        """All but the program's text.

        >>> report = Report("H100", 1, True, 8, 0, 4, 80e9, 2e9, {}, (), {}, {}, None, None, "")
        >>> json.loads(report.to_json())["modelled_seconds"] is None
        True
        """
        found = self._asdict()
        del found["text"]
        found["modelled_seconds"] = found.pop("seconds")
        found["modelled_share_of_peak"] = found.pop("share")
        keys = ("name", "trips", "kernels", "modelled_seconds")
        found["loops"] = [dict(zip(keys, loop, strict=True)) for loop in self.loops]
        return json.dumps(found)

    def __str__(self) -> str:
        size = lambda n: "unknown" if n is None else f"{n / 1e6:,.1f} MB"
        rows = [
            ("target", f"{self.target}, {self.devices} device{'s' * (self.devices > 1)}"),
            ("fits", f"{'yes' if self.fits else 'no'}, in {self.memory / 1e9:.1f} GB per device"),
            ("arguments", size(self.argument_bytes)),
            ("temporaries", size(self.temp_bytes)),
            ("results", size(self.result_bytes)),
            ("products", f"{self.flops / 1e9:,.3f} GFLOP"),
            ("kernels", f"{_kinds(self.kernels)}, outside loops"),
        ]
        for name, trips, kernels, seconds in self.loops:
            n = "an unknown number of" if trips is None else f"{trips:,}"
            rows.append(("loop", f"{n} iterations of {_kinds(kernels)}: {_time(seconds)}, {name}"))
        for kind, (number, sent) in self.collectives.items():
            overlap = self.overlapped.get(kind, 0)
            rows.append((kind, f"{number:,}, {size(sent)} sent, {overlap:,} overlap with kernels"))
        share = "" if self.share is None else f", {self.share:.1%} of the bfloat16 peak"
        rows.append(("time", f"{_time(self.seconds)}{share}"))
        if not self.fits:
            rows.append(("compiler", self.text.splitlines()[0] if self.text else ""))
        return "\n".join(f"{name:20}{value}" for name, value in rows)


def _kinds(kernels: dict[str, int]) -> str:
    kinds = ", ".join(f"{number} {kind}" for kind, number in kernels.items())
    return f"{sum(kernels.values())} kernels" + (f" ({kinds})" if kinds else "")


def _time(seconds: float | None) -> str:
    return "no modelled time" if seconds is None else f"{seconds * 1e6:,.2f} us modelled"
