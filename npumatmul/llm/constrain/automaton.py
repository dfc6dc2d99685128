"""A grammar as a deterministic automaton over bytes, whose states are made when they are first reached.

A stack of expressions says what is still to come, and a state is the set of all stacks that are possible after the
bytes so far. States have numbers, so that many byte strings are followed at once in a table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from npumatmul.llm.constrain.expressions import Bytes, Choice, Expression, Later, Repeat, Sequence, settle

__all__ = ["DEAD", "AmbiguousError", "Automaton", "State"]

DEAD = 0
"""The number of the state that nothing leads out of."""

MOST_STATES = 8192  # of a kilobyte each
MOST_STACKS = 4096  # of one state
MOST_WORK = 200_000  # stacks that are looked at for one token


class AmbiguousError(ValueError):
    """A grammar allows so many ways to go on at once that following them would take too long."""


class Stack:
    """What comes next, and what comes below it. There is one object for each pair."""

    __slots__ = ("below", "top")

    def __init__(self, top: Expression, below: Stack | None) -> None:
        self.top, self.below = top, below


State = frozenset[Stack | None]
"""Stacks with a set of bytes on top; None where the text may end."""


class Automaton:
    """Follows byte strings of a grammar.

    Parameters
    ----------
    grammar : Expression
        What the byte strings are.

    Attributes
    ----------
    start : State
        The state before the first byte.
    table : ndarray of int32, shape (states, 256)
        Numbers of states by state and byte; rows count from when `fill` was called with their state.

    Raises
    ------
    AmbiguousError
        If it is too ambiguous; from all methods.
    ValueError
        If the grammar has no byte string.
    """

    def __init__(self, grammar: Expression) -> None:
        settle(grammar)
        if not grammar.finite:
            raise ValueError("no text satisfies the grammar")
        self._stacks: dict[tuple[Expression, Stack | None], Stack] = {}
        self._states: list[State] = []
        self._numbers: dict[State, int] = {}
        self._work = 0
        self.table: NDArray[np.int32]
        self._filled: NDArray[np.bool_]
        self.start = self._opened([self._push(grammar, None)])
        self._forget()

    def number(self, state: State) -> int:
        """The number of a state, until `begin` is called."""
        found = self._numbers.get(state)
        if found is None:
            found = len(self._states)
            self._states.append(state)
            self._numbers[state] = found
            if found == len(self.table):
                self.table = np.concatenate([self.table, np.zeros_like(self.table)])
                self._filled = np.concatenate([self._filled, np.zeros_like(self._filled)])
        return found

    def fill(self, numbers: NDArray[np.int32]) -> None:
        """Make the rows of some states."""
        missing = numbers[~self._filled[numbers]]
        for number in set(missing.tolist()):
            row = self._row(self._states[number])
            self.table[number] = row  # the table may have grown meanwhile
            self._filled[number] = True

    def begin(self) -> None:
        """Begin to look for a token. Numbers are forgotten where there are many; states can be used on."""
        self._work = 0
        if len(self._states) > MOST_STATES:
            self._forget()

    def after(self, state: State, data: bytes) -> State:
        """The state after some bytes; the empty one where they are not allowed."""
        self._work = 0
        for byte in data:
            state = self._opened(each.below for each in self._with(state, byte))
        return state

    def _forget(self) -> None:
        self._stacks.clear()
        self._states, self._numbers = [], {}
        self.table = np.zeros((64, 256), np.int32)
        self._filled = np.zeros(64, bool)
        assert self.number(frozenset()) == DEAD
        self._filled[DEAD] = True

    def _row(self, state: State) -> NDArray[np.int32]:
        """Where each byte leads: bytes that the same stacks take lead to the same state."""
        takers: dict[int, list[Stack]] = {}
        for each in state:
            if each is not None:
                assert isinstance(each.top, Bytes)
                takers.setdefault(each.top.members, []).append(each)
        row = np.zeros(256, np.int32)
        known: dict[tuple[int, ...], int] = {}
        for byte in range(256):
            sets = tuple(members for members in takers if members >> byte & 1)
            if sets:
                if sets not in known:
                    known[sets] = self.number(self._opened(each.below for one in sets for each in takers[one]))
                row[byte] = known[sets]
        return row

    @staticmethod
    def _with(state: State, byte: int) -> Iterator[Stack]:
        for each in state:
            if each is not None:
                assert isinstance(each.top, Bytes)
                if each.top.members >> byte & 1:
                    yield each

    def _push(self, top: Expression, below: Stack | None) -> Stack | None:
        found = self._stacks.get((top, below))
        if found is None:
            found = self._stacks[top, below] = Stack(top, below)
        return found

    def _opened(self, stacks: Iterator[Stack | None] | list[Stack | None]) -> State:
        """Take the expressions on top apart until bytes are there."""
        made: set[Stack | None] = set()
        seen: set[Stack | None] = set()
        todo = list(stacks)
        while todo:
            each = todo.pop()
            if each in seen:
                continue
            seen.add(each)
            self._work += 1
            if len(made) > MOST_STACKS or self._work > MOST_WORK:
                raise AmbiguousError(
                    "the format of the answer is too ambiguous: too many ways to go on are possible at once"
                )
            if each is None or isinstance(each.top, Bytes):
                made.add(each)
            else:
                todo.extend(self._taken_apart(each.top, each.below))
        return frozenset(made)

    def _taken_apart(self, top: Expression, below: Stack | None) -> Iterator[Stack | None]:
        if isinstance(top, Sequence):
            for item in reversed(top.items):
                below = self._push(item, below)
            yield below
        elif isinstance(top, Choice):
            for item in top.items:
                if item.finite:
                    yield self._push(item, below)
        elif isinstance(top, Repeat):
            if top.low == 0:
                yield below
            if top.high != 0 and top.item.finite:
                rest = top.after_one()
                yield self._push(top.item, below if rest.high == 0 else self._push(rest, below))
        elif isinstance(top, Later):
            assert top.target is not None
            yield self._push(top.target, below)
