"""Parse the text of a compiled program: kernels, loops, collectives and modelled time."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from fnn.targets.devices import Device

_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "opt-barrier", "domain", "iota",
    "add-dependency",
}  # fmt: skip
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_BYTES = {"pred": 1, "bf16": 2, "token": 0}


class Loop(NamedTuple):
    """A loop of the program. trips: the number of iterations, None if unknown; kernels: of one
    iteration, by kind, without inner loops; seconds: modelled, per iteration with inner loops."""

    name: str
    trips: int | None
    kernels: dict[str, int]
    seconds: float | None


class _Instruction(NamedTuple):
    name: str
    opcode: str
    result: str
    operands: list[str]
    line: str

    @classmethod
    def parse(cls, line: str) -> "_Instruction | None":
        """None if the line is not an instruction."""
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)", line)
        if match is None:
            return None
        name, result, opcode, rest = match.groups()
        operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
        return cls(name, opcode, result, operands, line)

    def attribute(self, key: str) -> str | None:
        """The computation named by an attribute such as body or calls."""
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.line)
        return match and match[1]

    @property
    def computations(self) -> list[str]:
        """The computations of a call, or the branches of a conditional."""
        match = re.search(r"branch_computations=\{(.*?)\}", self.line)
        named = r"(?:to_apply|true_computation|false_computation)=%?([\w.\-]+)"
        return re.findall(r"[\w.\-]+", match[1]) if match else re.findall(named, self.line)

    @property
    def is_kernel(self) -> bool:
        """Whether the device runs a kernel for it. Scalar operations are not kernels."""
        if self.opcode in _FREE or self.opcode.endswith(("-done", "-update")):
            return False
        if self.opcode == "custom-call":
            return "AllocateBuffer" not in self.line
        return self.opcode in ("fusion", "sort") or not re.match(r"\w+\[\]", self.result)

    def seconds(self, device: Device) -> float | None:
        """The time modelled by XLA, None without one.

        On a TPU it is given in cycles. On a GPU it is that of the general cost model; that has no
        tensor cores, so for matrix products it is that of the model "sol" (speed of light).
        """
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', self.line):
            return int(cycles[1]) / device.clock
        times = re.findall(r'"exec_time_us":([\d.e+\-]+),[^{}]*?"name":"([^"]*)"', self.line)
        models = {name: float(time) / 1e6 for time, name in times}
        product = "experimental-gemm-cost-model" in models or self.opcode == "custom-call"
        return models.get("sol" if product else "")


class Program:
    """A compiled program, parsed from its text.

    loops: outermost first; collectives: {kind: (number per device, bytes that a device sends around
    a ring)}; overlapped: {kind: number of collectives that overlap with kernels}. Both are
    multiplied by the trips of loops, 1 if unknown.
    """

    def __init__(self, text: str, device: Device) -> None:
        self.device = device
        self.computations: dict[str, dict[str, _Instruction]] = {}
        self.entry = name = ""
        for line in text.splitlines():
            if start := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$", line):
                name = start[2]
                self.entry = name if start[1] else self.entry
                self.computations[name] = {}
            elif name and (instruction := _Instruction.parse(line)):
                self.computations[name][instruction.name] = instruction
        loops = list(self._loops(self.entry, 1))
        of = lambda body: (self.kernels(body), self.seconds(body))
        self.loops = [Loop(_place(loop), trips, *of(body)) for body, loop, trips, _ in loops]
        self.collectives: dict[str, tuple[int, float]] = {}
        self.overlapped: dict[str, int] = {}
        for body, times in [(self.entry, 1), *((body, times) for body, *_, times in loops)]:
            for kind, sent, overlaps in self._communication(body):
                number, size = self.collectives.get(kind, (0, 0.0))
                self.collectives[kind] = number + times, size + times * sent
                self.overlapped[kind] = self.overlapped.get(kind, 0) + times * overlaps

    def _inside(self, computation: str) -> Iterator[_Instruction]:
        """The instructions of a computation and of those that it calls, without bodies of loops."""
        for instruction in self.computations.get(computation, {}).values():
            yield instruction
            if instruction.opcode in ("call", "conditional"):
                for called in instruction.computations:
                    yield from self._inside(called)

    def kernels(self, computation: str) -> dict[str, int]:
        """The number of kernels by kind in one run of a computation, without inner loops."""
        kinds = (i.opcode for i in self._inside(computation) if i.is_kernel)
        return dict(Counter(kind.removesuffix("-start") for kind in kinds).most_common())

    def seconds(self, computation: str) -> float | None:
        """The modelled time of a computation, with inner loops; None if no kernel has a model or a
        loop has an unknown number of iterations."""
        total = self._modelled(computation)
        return total if total > 0 else None  # NaN is not

    def _modelled(self, computation: str) -> float:
        """0 if no kernel has a model, NaN if a loop has an unknown number of iterations."""
        total = 0.0
        for instruction in self._inside(computation):
            if instruction.opcode == "while":
                trips = self._trips(computation, instruction)
                body = self._modelled(instruction.attribute("body") or "")
                total += body * (math.nan if trips is None else trips)
            elif instruction.is_kernel:
                total += instruction.seconds(self.device) or 0.0
        return total

    def _loops(self, computation: str, times: int) -> Iterator[tuple[str, _Instruction, Any, int]]:
        """(body, loop, trips, number of runs of the body in all, unknown trips counted as 1)."""
        for loop in self._inside(computation):
            if loop.opcode == "while":
                body, trips = loop.attribute("body") or "", self._trips(computation, loop)
                yield body, loop, trips, times * (trips or 1)
                yield from self._loops(body, times * (trips or 1))

    def _communication(self, body: str) -> Iterator[tuple[str, float, bool]]:
        """(kind, bytes sent, whether kernels run meanwhile) of the collectives of one iteration.

        A start and its done are one collective. On a TPU a collective may be spread over several
        fusions, whose parts have the same chain_id.
        """
        started: dict[str, int] = {}
        kernels = 0
        for instruction in self._inside(body):
            kind = _kind(instruction.opcode)
            if kind and instruction.opcode.endswith("-start"):
                started[instruction.name] = kernels
            elif kind and (sent := _sent(kind, instruction, self._start(body, instruction))):
                begun = instruction.operands[0] if instruction.operands else ""
                overlaps = instruction.opcode.endswith("-done") and kernels > started.get(begun, 0)
                yield kind, sent, overlaps
            elif instruction.is_kernel:
                kernels += 1
        for kind, parts in self._fused(body):
            if sent := _sent(kind, parts[0], parts[0].line):
                yield kind, sent, len(parts) > 2

    def _fused(self, body: str) -> Iterator[tuple[str, list[_Instruction]]]:
        """The collectives inside fusions: (kind, the parts with the same chain or channel)."""
        chains: dict[tuple[str, str], list[_Instruction]] = {}
        fusions = (called for called in self._inside(body) if called.opcode == "fusion")
        for part in (part for fusion in fusions for part in self._called(fusion, "calls").values()):
            if kind := _kind(part.opcode):
                found = re.search(r'chain_id="?(\d+)', part.line)
                found = found or re.search(r"channel_id=(\d+)", part.line)
                chains.setdefault((kind, found[0] if found else part.name), []).append(part)
        yield from ((kind, parts) for (kind, _), parts in chains.items())

    def _start(self, body: str, done: _Instruction) -> str:
        """The line with the device groups: of an asynchronous collective, that of its start."""
        begun = done.operands[0] if done.opcode.endswith("-done") and done.operands else ""
        return self.computations[body].get(begun, done).line

    def _called(self, instruction: _Instruction, key: str) -> dict[str, _Instruction]:
        return self.computations.get(instruction.attribute(key) or "", {})

    def _trips(self, computation: str, loop: _Instruction) -> int | None:
        """The number of iterations: from XLA, or from a counter that starts at a constant, is
        incremented by a constant and compared with a constant; None if unknown."""
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.line):
            return int(known[1])
        condition, body = self._called(loop, "condition"), self._called(loop, "body")
        compared, end = _root(condition, "compare"), _root(body, "tuple")
        start = self.computations[computation].get(loop.operands[0])
        if not (compared and end and start and "direction=LT" in compared.line):
            return None
        counter = _through_copies(condition, compared.operands[0])
        index = re.search(r"index=(\d+)", counter.line) if counter else None
        if index is None or start.opcode != "tuple":
            return None
        i = int(index[1])
        first = _number(self.computations[computation], start.operands[i])
        last, step = _number(condition, compared.operands[1]), _increment(body, end.operands[i])
        if first is None or last is None or step <= 0:
            return None
        return max(0, -(-(last - first) // step))


def _root(computation: dict[str, _Instruction], opcode: str) -> _Instruction | None:
    """The last instruction, if it has this opcode."""
    last = next(reversed(computation.values()), None)
    return last if last and last.opcode == opcode else None


def _increment(body: dict[str, _Instruction], name: str) -> int:
    """The constant of an addition, if it has exactly one; else 0."""
    added = _through_copies(body, name)
    parts = added.operands if added and added.opcode == "add" else []
    found = [n for part in parts if (n := _number(body, part)) is not None]
    return found[0] if len(found) == 1 else 0


def _through_copies(body: dict[str, _Instruction], name: str) -> _Instruction | None:
    found = body.get(name)
    while found is not None and found.opcode in ("copy", "bitcast") and found.operands:
        found = body.get(found.operands[0])
    return found


def _number(body: dict[str, _Instruction], name: str) -> int | None:
    """The value of a constant, or None."""
    found = _through_copies(body, name)
    match = found and re.search(r" constant\((-?\d+)\)", found.line)
    return int(match[1]) if match else None


def _place(loop: _Instruction) -> str:
    """The loop's name in the function's jaxpr (op_name), or in the program."""
    match = re.search(r'op_name="([^"]*)"', loop.line)
    return match[1] if match else loop.name


def _kind(opcode: str) -> str | None:
    base = opcode.removesuffix("-start").removesuffix("-done")
    return base if base in _COLLECTIVES else None


def _sent(kind: str, instruction: _Instruction, line: str) -> float:
    """Bytes that each device sends around a ring of g devices, b being those of the result:
    2 (g - 1) / g b for an all-reduce, (g - 1) b for a reduce-scatter, b for a permutation,
    (g - 1) / g b for the others."""
    size = 0.0
    for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", instruction.result):
        bits = re.search(r"\d+", dtype)
        width = _BYTES.get(dtype, int(bits[0]) / 8 if bits else 1)
        size += width * math.prod(map(int, filter(None, shape.split(","))))
    g = _group_size(line)
    shares = {"all-reduce": 2 * (g - 1) / g, "reduce-scatter": g - 1, "collective-permute": 1}
    return size * shares.get(kind, (g - 1) / g)


def _group_size(line: str) -> int:
    """The number of devices per group."""
    if match := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(match[1])
    if match := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):  # after jax 0.10
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", match[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", match[2]))
    match = re.search(r"replica_groups=\{\{([\d,]*)\}", line)
    return len(match[1].split(",")) if match else 1
