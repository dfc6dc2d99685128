"""Programs of recorded steps: a computation that one call of C makes again, of other rows."""

from __future__ import annotations

import ctypes as C
import weakref
from collections import abc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from npumatmul.device.device import Device
from npumatmul.device.leases import Lease, Together
from npumatmul.device.memory import Memory
from npumatmul.device.session import Session
from npumatmul.errors import NpuError, RknnError
from npumatmul.host import kernels
from npumatmul.host.arrays import address_of
from npumatmul.host.epilogue import Epilogue, PlacedEpilogue
from npumatmul.host.executor import Call, Executor, Report, Sequence, StepsRun
from npumatmul.host.layers import CALLBACK, Kind, Op
from npumatmul.host.processors import fast_processors
from npumatmul.running.bound import PROVEN, BoundProgram, Shared
from npumatmul.running.call import NoRoomError
from npumatmul.running.placement import Placement
from npumatmul.running.pool import PooledContext, TileShape
from npumatmul.running.recording import Buffer, Entry, Recorder
from npumatmul.running.runs import Runs
from npumatmul.running.stored import StoredWeight

__all__ = ["RecordedBlock", "RecordedProgram"]

Float32 = NDArray[np.float32]

_LINE = 64
NO_ROOM = -106
_NOTHING = Epilogue()


@dataclass(frozen=True, eq=False)
class RecordedBlock:
    """Steps from one array to another.

    Attributes
    ----------
    entries : list of Entry
    begins, ends : Buffer
        Where the array stood that they began with, and where their result.
    beside : Buffer, optional
        What they are given besides.
    """

    entries: list[Entry]
    begins: Buffer
    ends: Buffer
    beside: Buffer | None = None

    @classmethod
    def of(cls, recorder: Recorder, result: Float32) -> RecordedBlock | None:
        """What was recorded; None where it cannot be run again, which `Recorder.refused` explains."""
        ends = recorder.result(result)
        if recorder.refused is None and ends is recorder.begins_with:
            recorder.refuse("the result stands where the computation began")
        if recorder.refused is not None or ends is None:
            return None
        return cls(recorder.entries, recorder.begins_with, ends, recorder.begins_beside)

    @property
    def can_end(self) -> bool:
        """Whether its result can stand in an array of its own: one product writes it, and nothing reads it."""
        uses = [entry for entry in self.entries if any(buffer is self.ends for _, buffer, _ in entry.places)]
        return len(uses) == 1 and uses[0] is self.entries[-1] and uses[0].program is not None


Blocks = abc.Sequence[RecordedBlock]


class RecordedProgram(Runs):
    """Blocks of steps that follow each other, each of which begins with the result of the one before.

    Parameters
    ----------
    blocks : sequence of RecordedBlock
        Of rows of one shape. Their products are with weights of one device.
    sequences : int
        Texts that the rows are of.
    apart : bool
        Whether the last block's result, of another shape, is written to a new array of each run.

    Attributes
    ----------
    blocks : int
    shape : tuple of int
        Of what it begins with.
    """

    def __init__(self, blocks: Blocks, sequences: int = 1, *, apart: bool = False) -> None:
        entries = [entry for block in blocks for entry in block.entries]
        self._programs = [entry.program for entry in entries if entry.program is not None]
        weights = dict.fromkeys(program.weight for program in self._programs)
        self.weights = tuple(weights)
        devices = {each.device for each in self.weights}
        if len(devices) != 1:
            raise ValueError(
                "the weights are on several devices" if devices else "no step is a product: all are calls of Python"
            )
        (self._device,) = devices
        self._session, self._placement = self._device.session, Placement.of(self._device)
        self._weight: Any = _Weights(self.weights, self._device)
        self._bound: list[BoundProgram] = []
        self._last_bound: BoundProgram | None = None
        #: The run that goes on, by weak reference.
        self._held: dict[None, weakref.ref[_Run]] = {}
        self._arena = _Arena(blocks, apart)
        self.shape = blocks[0].begins.array.shape  # the array itself
        self.blocks = len(blocks)
        self._ends = np.cumsum([0, *(len(block.entries) for block in blocks)]).tolist()
        self._x = self._arena.rows(self.shape)
        self._given = _Given()
        self._keeps, self._ops = entries, (Op * len(entries))()
        self._calls: list[tuple[Any, PlacedEpilogue | None]] = []
        for op, entry, place in zip(self._ops, entries, self._arena.places, strict=True):
            self._prepare(op, entry, place)
        #: The call whose result is that of a run, and the shape of that.
        self._ending: tuple[Call, tuple[int, ...]] | None = None
        if apart:
            assert blocks[-1].can_end
            assert entries[-1].program is not None
            self._ending = self._calls[-1][0], entries[-1].program.result_shape
        #: Layers of caches whose keys and values steps store.
        self._stores = frozenset(int(entry.op.layer) for entry in entries if entry.op.kind == Kind.APPEND)
        threads = max(1, min(fast_processors(), 8))
        self._sequences = (Sequence * sequences)()
        self._run = StepsRun(self._sequences, sequences, threads=threads)

    def _prepare(self, op: Op, entry: Entry, place: dict[str, int]) -> None:
        """A step, in the arena."""
        C.pointer(op)[0] = entry.op
        for name, address in place.items():
            if name == "weight":
                op.weight = address
            else:
                getattr(op, name).data = address
        if entry.program is not None:
            call = entry.program.plain_call()
            after = None
            if entry.bias is not None or (entry.epilogue is not None and not entry.epilogue.does_nothing):
                out = np.empty(entry.program.result_shape, np.float32)
                after = PlacedEpilogue(entry.epilogue or _NOTHING, out, entry.bias, fresh=True)
                call.epilogue = after.pointer
            call.a, call.out = place["x"], place["out"]
            op.call = C.pointer(call)
            self._calls.append((call, after))
        if entry.call is not None:
            assert entry.arrays is not None
            x, out = (
                _at(place[name], array, self._arena) for name, array in zip(("x", "out"), entry.arrays, strict=True)
            )
            asked = _answers(entry.call, x, out, self._given)
            next(asked)
            op.callback = callback = CALLBACK(asked.__next__)
            self._calls.append((callback, None))

    @property
    def closed(self) -> bool:
        """Whether a weight is closed: then it cannot be run any more."""
        return bool(self._weight.closed)

    def run_blocks(
        self,
        x: Float32,
        caches: Iterable[Any],
        counts: Iterable[int],
        given: object,
        first: int = 0,
        stop: int | None = None,
        beside: Float32 | None = None,
    ) -> Float32 | None:
        """Run blocks.

        Parameters
        ----------
        x : ndarray of float32, of `shape`
            What enters the first of them.
        caches : sequence of KVCache
            Where keys and values of each sequence go; their `offset` does not change.
        counts : sequence of int
            Tokens that come to each.
        given : object
            For calls of Python, which may change what it likes.
        first, stop : int
            Which blocks; all by default.
        beside : ndarray of float32, shape (blocks, ...), optional
            What each block is given besides.

        Returns
        -------
        ndarray of float32, or None
            A new array. None, and nothing was run, where another thread is at it.

        Raises
        ------
        RknnError, DeviceLostError, NotFiniteError, ClosedError
            As products do.
        """
        held = None  # is gone before what it refers to: only what `_held` keeps calls back
        mine = _Run()
        held = weakref.ref(mine, partial(self._held.pop, None))  # an interrupt before the ``try`` ends it, too
        if self._held.setdefault(None, held) is not held:
            return None
        del held
        try:
            stop = self.blocks if stop is None else stop
            run = self._run
            for sequence, cache in zip(self._sequences, caches, strict=True):
                sequence.position, sequence.offset = cache.offset + cache.shift, cache.offset
                sequence.layers, sequence.layer_count = C.addressof(cache.structs), len(cache.structs)
            run.first, run.stop = self._ends[first], self._ends[stop]
            self._x[first % 2][...] = x
            if beside is not None:
                for place, own in zip(self._arena.beside[first:stop], beside[first:stop], strict=True):
                    place[...] = own
            self._given.given = given
            ended: Float32 | None = None
            if self._ending is not None and stop == self.blocks:
                ended = np.empty(self._ending[1], np.float32)
                self._ending[0].out = address_of(ended)
            for cache in caches:
                if cache.followed:
                    cache.stored(self._stores)
            while True:
                try:
                    self.run(self._started, None, ended)
                    break
                except NoRoomError:  # which comes to each layer once in many tokens
                    for cache, count in zip(caches, counts, strict=True):
                        cache.make_room(count)
            if ended is not None:
                return ended
            made: Float32 = self._x[stop % 2].copy()  # while nobody else can run
            return made
        finally:
            self._given.given = None
            self._held.pop(None, None)

    def _started(self, bound: BoundProgram) -> Any:
        """What a bound program is given."""
        return self._run

    def _bind(self, lease: Lease) -> BoundProgram:
        tiles = [program.tiles() for program in self._programs]
        contexts = iter(self._placement.contexts.for_tiles([tile for each in tiles for tile in each], lease))
        bound = _BoundSteps(
            self._placement,
            [
                program.bound_with([next(contexts) for _ in each], call)
                for program, each, call in zip(self._programs, tiles, self._product_calls(), strict=True)
            ],
            self._ops,
            self._run,
            self._given,
        )
        return self._bound_once_more(bound, lease)

    def _product_calls(self) -> Iterator[Call]:
        return (call for call, _ in self._calls if isinstance(call, Call))

    @property
    def products(self) -> Iterable[Runs]:
        """What the run that goes on multiplies."""
        steps = self._keeps[self._run.first : self._run.stop]
        return [entry.program for entry in steps if entry.program is not None]

    def does_without_turns(self) -> bool:
        changes = [program.does_without_turns() for program in self._programs]
        if any(changes):
            self._bound = []
        return any(changes)

    def tiles(self) -> list[TileShape]:
        """Of all products."""
        return [tile for program in self._programs for tile in program.tiles()]


class _Run:
    """A run of a program: there is one at a time."""


class _Weights:
    """The weights of a program as one."""

    def __init__(self, weights: abc.Sequence[StoredWeight], device: Device) -> None:
        self.tiles, self.device, self._weights = Together(each.tiles for each in weights), device, weights

    @property
    def closed(self) -> bool:
        for each in self._weights:  # noqa: SIM110 - without a call for each: every run comes here
            if each.closed:
                return True
        return False


@dataclass(eq=False)
class _Given:
    """What calls of Python need of the run that is going on, and what they raised."""

    given: object = None
    errors: list[BaseException] = field(default_factory=list)


def _answers(call: Callable[[Float32, Any], Float32], x: Float32, out: Float32, given: _Given) -> Iterator[int]:
    """A generator is asked, since a function would look for signals before its first ``try``."""
    code = 0
    while True:
        try:
            yield code
            code = kernels.INTERRUPTED
            out[...] = call(x, given.given)
            code = 0
        except GeneratorExit:
            raise
        except BaseException as error:
            given.errors.append(error)
            code = kernels.INTERRUPTED


class _Arena:
    """Memory for what steps write: buffers whose steps are over give way to others.

    What blocks begin with and end with stands in one of two places in turns, so that each finds what the one before
    has left.

    Attributes
    ----------
    places : list of dict
        Of each step the addresses of its fields.
    beside : list of ndarray
        Of each block that is given something besides, where it finds that.
    """

    def __init__(self, blocks: Blocks, apart: bool = False) -> None:
        passed = [each for block in blocks for each in (block.begins, block.ends)]
        widest = max(_padded(each.stop - each.start) for each in (passed[:-1] if apart else passed))
        laid = [_laid_out(block) for block in blocks]
        inner = 2 * widest + max(size for _, size in laid)
        besides = [block.beside for block in blocks if block.beside is not None]
        nbytes = [_padded(each.stop - each.start) for each in besides]
        self._memory = np.zeros(inner + sum(nbytes) + _LINE, np.uint8)
        self._start = int(self._memory.ctypes.data) + -int(self._memory.ctypes.data) % _LINE
        self._widest = widest
        self.places: list[dict[str, int]] = []
        own = {each: self._start + inner + sum(nbytes[:i]) for i, each in enumerate(besides)}
        self.beside = [self.array(at, each.array.shape) for each, at in own.items()]
        for number, (block, (offsets, _)) in enumerate(zip(blocks, laid, strict=True)):
            at = {buffer: self._start + 2 * widest + offset for buffer, offset in offsets.items()}
            at[block.begins] = self._start + number % 2 * widest
            is_apart = apart and number == len(blocks) - 1
            at[block.ends] = 0 if is_apart else self._start + (number + 1) % 2 * widest
            if block.beside is not None:
                at[block.beside] = own[block.beside]
            for entry in block.entries:
                self.places.append({name: at[buffer] + offset for name, buffer, offset in entry.places})

    def rows(self, shape: tuple[int, ...]) -> tuple[Float32, Float32]:
        """The two places as arrays."""
        return self.array(self._start, shape), self.array(self._start + self._widest, shape)

    def array(self, address: int, shape: tuple[int, ...]) -> Float32:
        """Contiguous rows at an address."""
        start = address - int(self._memory.ctypes.data)
        nbytes = 4 * int(np.prod(shape))
        return self._memory[start : start + nbytes].view(np.float32).reshape(shape)


def _at(address: int, like: Float32, arena: _Arena) -> Float32:
    return arena.array(address, like.shape)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _LINE) * _LINE


def _laid_out(block: RecordedBlock) -> tuple[dict[Buffer, int], int]:
    """Where the buffers of a block stand that are needed within it only, and how much that takes."""
    inner = {buffer for entry in block.entries for _, buffer, _ in entry.places}
    inner -= {block.begins, block.ends, block.beside}
    placed: list[tuple[int, int, Buffer]] = []  # at work: start, end, which
    offsets: dict[Buffer, int] = {}
    size = 0
    for buffer in sorted(inner, key=lambda each: (each.first, each.start)):
        placed = sorted((each for each in placed if each[2].last >= buffer.first), key=lambda each: each[:2])
        length, offset = _padded(buffer.stop - buffer.start), 0
        for start, end, _ in placed:
            if offset + length <= start:
                break
            offset = max(offset, end)
        offsets[buffer] = offset
        placed.append((offset, offset + length, buffer))
        size = max(size, offset + length)
    return offsets, size


class _Stepping:
    """An executor as `Runs` calls it, which runs steps."""

    def __init__(self, executor: Executor, given: _Given) -> None:
        self.executor, self._given = executor, given
        #: Whether the last run ended with what a call of Python raised.
        self.was_raised = False

    @property
    def lease(self) -> Any:
        return self.executor.lease

    @lease.setter
    def lease(self, ref: Any) -> None:
        self.executor.lease = ref

    @property
    def report(self) -> Report:
        return self.executor.report

    @property
    def given_up(self) -> bool:
        return self.executor.given_up

    def execute(self, ops: Any, run: StepsRun, proven: bool = False) -> int:
        """Run steps; what a call of Python raised is raised here."""
        code = self.executor.steps(ops, run)
        errors = self._given.errors
        self.was_raised = bool(errors)
        if errors:
            first = errors[0]
            errors.clear()  # their tracebacks refer to frames that refer to this
            try:
                raise first
            finally:
                del first
        return code


class _BoundSteps(BoundProgram):
    """Steps with the contexts, buffers and the executor that all of their products need."""

    def __init__(
        self, placement: Placement, products: abc.Sequence[BoundProgram], template: Any, run: StepsRun, given: _Given
    ) -> None:
        contexts: list[PooledContext] = [context for product in products for context in product.contexts]
        self._open(placement, products[0].plan, 0, contexts, Call())
        self._products, self._run, self._given = products, run, given
        self.proven = PROVEN  # each product has a count of its own
        self.struct = ops = type(template)()
        C.memmove(ops, template, C.sizeof(template))
        self._by_op: dict[int, BoundProgram] = {}
        waiting = iter(products)
        for number, op in enumerate(ops):
            if op.kind == Kind.PRODUCT:
                product = self._by_op[number] = next(waiting)
                op.placed = C.pointer(product.struct)

    def acquire_others(self, lease: Lease) -> None:
        """Lease an executor, and buffers that all products share."""
        self._lease = lease
        self._complete = False  # until the structs refer to others, for an interrupt may come before
        executor = self._placement.executor(lease)
        shared = Shared(self._placement, lease)
        for product in self._products:
            product.share(shared)
        self.executor = _Stepping(executor, self._given)  # type: ignore[assignment]
        self._buffers = tuple(shared.memories)
        self._complete = True

    def give_up(self, session: Session, weight: Any, memories: Iterable[Memory], keeps: object) -> None:
        """As `BoundProgram.give_up`; the threads are those of the executor itself."""
        self.executor = self.executor.executor  # type: ignore[attr-defined]
        super().give_up(session, weight, memories, (keeps, self._products))

    def failure(self, repeated: bool) -> NpuError:
        """What went wrong in the step that failed."""
        product = self._by_op.get(int(self._run.first))
        report = self.executor.report
        if product is None:
            if report.code == NO_ROOM:
                raise NoRoomError
            if report.code == kernels.INTERRUPTED:
                return NpuError("a program was interrupted")
            return RknnError("npumm_program_run", int(report.code), {"step": int(self._run.first)})
        product.executor = self.executor.executor  # type: ignore[attr-defined]
        return product.failure(repeated)

    def is_repeated_after(self, error: RknnError) -> bool:
        """Not where a call of Python raised it: products in it were repeated, and what it changed is changed."""
        return not self.executor.was_raised  # type: ignore[attr-defined]

    def in_vain(self, failed: RknnError) -> RknnError:
        """The error of a step that was repeated."""
        product = self._by_op.get(int(self._run.first))
        return failed if product is None else product.in_vain(failed)
