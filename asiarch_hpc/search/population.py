"""Slots: which places of the search exist, what was tried in each, and what comes next.

A search fills numbered slots with scored designs. Slots form batches: batch 0 is the cold start and draws from
generation 0 (the baselines alone), batch b from generation max(0, b - overlap), and generation g is built once
every slot of the batches before g is closed. So each batch sees a pool that is a function of the seed and of
outcomes, never of the order in which jobs happen to finish.

When a slot closes without a score, a further slot follows behind the planned ones, until the wanted number of
designs is scored or the slots reach their limit. Further slots form batches of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from asiarch_hpc.config import SearchConfig
from asiarch_hpc.errors import RecordError

Status = Literal["open", "busy", "scored", "discarded", "given_up"]
Outcome = Literal["scored", "discarded", "failed"]

CLOSED: frozenset[Status] = frozenset({"scored", "discarded", "given_up"})
FRUITLESS: frozenset[Status] = frozenset({"discarded", "given_up"})


@dataclass(frozen=True, slots=True)
class SlotState:
    """One slot. Open: attempt `attempt` is wanted; busy: it is under way; else it is the one that closed it."""

    slot: int
    attempt: int = 0
    status: Status = "open"
    experiment: str | None = None


@dataclass(frozen=True, slots=True)
class Population:
    """State of the search. A slot absent from `slots` is open; `generations` counts those built, with number 0."""

    slots: Mapping[int, SlotState] = field(default_factory=dict)
    generations: int = 0

    def slot(self, slot: int) -> SlotState:
        """State of a slot."""
        return self.slots.get(slot, SlotState(slot))

    def count(self, status: Status) -> int:
        """Number of slots with that status (open ones: those that were tried before)."""
        return sum(state.status == status for state in self.slots.values())


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do next: designs to propose as (slot, attempt, generation to draw from), a generation to build."""

    propose: tuple[tuple[int, int, int], ...] = ()
    build_generation: int | None = None
    done: bool = False


def slot_limit(config: SearchConfig) -> int:
    """Largest number of slots that a search may use."""
    return max(config.designs, int(config.designs * config.slot_limit))


def batch_of(slot: int, config: SearchConfig) -> int:
    """Batch of a slot: the cold start, the planned batches (the last may be short), then the further ones."""
    assert 0 <= slot < slot_limit(config), slot
    if slot >= config.designs:
        return _planned_batches(config) + (slot - config.designs) // config.batch
    if slot < config.cold_start:
        return 0
    return 1 + (slot - config.cold_start) // config.batch


def slots_of(batch: int, config: SearchConfig) -> range:
    """Slots of a batch, in order; empty behind the last one."""
    assert batch >= 0, batch
    planned = _planned_batches(config)
    if batch >= planned:
        first = config.designs + (batch - planned) * config.batch
        end = slot_limit(config)
    else:
        first = config.cold_start + (batch - 1) * config.batch if batch else 0
        end = config.designs
    size = config.batch if batch else config.cold_start
    return range(min(first, end), min(first + size, end))


def generation_of(batch: int, config: SearchConfig) -> int:
    """The generation that a batch draws from."""
    return max(0, batch - config.overlap)


def through_slot(generation: int, config: SearchConfig) -> int:
    """First slot that is not folded into a generation."""
    return slots_of(generation - 1, config).stop if generation else 0


def element(slot: int, attempt: int, config: SearchConfig) -> int:
    """Index of an attempt in its batch's stream of proposals: first attempts come before all second ones."""
    slots = slots_of(batch_of(slot, config), config)
    return slot - slots.start + attempt * len(slots)


def plan(population: Population, config: SearchConfig) -> Plan:
    """What can be done now. Asking twice changes nothing; only `begin`, `finish` and `built` change the state."""
    if population.generations == 0:
        return Plan(build_generation=0)
    if not config.designs:
        return Plan(done=True)
    end = _slots_in_use(population, config)
    all_closed = all(population.slot(slot).status in CLOSED for slot in range(end))
    last = batch_of(end - 1, config)
    following = population.generations
    build = following if following <= last + 1 and _closed_before(following, population, config, end) else None
    propose = tuple(
        (slot, population.slot(slot).attempt, generation)
        for slot in range(end)
        if population.slot(slot).status == "open"
        and (generation := generation_of(batch_of(slot, config), config)) < population.generations
    )
    return Plan(propose=propose, build_generation=build, done=all_closed and population.generations > last + 1)


def begin(population: Population, slot: int, attempt: int) -> Population:
    """Notes that an attempt is under way. A repetition, or an attempt that is over, changes nothing.

    Raises:
        RecordError: the attempt comes before its predecessors are over.
    """
    state = population.slot(slot)
    if not _current(state, attempt) or state.status == "busy":
        return population
    return _with(population, replace(state, status="busy"))


def finish(
    population: Population, slot: int, attempt: int, outcome: Outcome, experiment: str | None, config: SearchConfig
) -> Population:
    """Notes how an attempt ended. The result of an attempt that is already over (an orphan's) changes nothing.

    A failed attempt opens the slot for the next one, or gives it up after `search.attempts`.

    Raises:
        RecordError: the attempt comes before its predecessors are over.
    """
    state = population.slot(slot)
    if not _current(state, attempt):
        return population
    if outcome != "failed":
        return _with(population, replace(state, status=outcome, experiment=experiment))
    if attempt + 1 >= config.attempts:
        return _with(population, replace(state, status="given_up", experiment=experiment))
    return _with(population, SlotState(slot, attempt + 1))


def built(population: Population, generation: int) -> Population:
    """Notes that a generation was built; a repetition changes nothing.

    Raises:
        RecordError: an earlier generation is missing.
    """
    if generation > population.generations:
        raise RecordError(
            f"pool generation {generation} exists without generation {population.generations}; "
            "restore the missing file, or move the later ones away and start again: they are rebuilt"
        )
    return replace(population, generations=max(population.generations, generation + 1))


def _planned_batches(config: SearchConfig) -> int:
    rest = max(0, config.designs - config.cold_start)
    return 1 + -(-rest // config.batch)


def _slots_in_use(population: Population, config: SearchConfig) -> int:
    """Number of slots from 0 on that exist now: the planned ones and those that fruitless ones call for.

    Each slot that closes without a score calls for one more. That is the same number whichever of them closes
    first, it never shrinks, and the further slots wait for their generation like all others.
    """
    end = config.designs
    hopeful = sum(population.slot(slot).status not in FRUITLESS for slot in range(end))
    while hopeful < config.designs and end < slot_limit(config):
        hopeful += population.slot(end).status not in FRUITLESS
        end += 1
    return end


def _closed_before(generation: int, population: Population, config: SearchConfig, end: int) -> bool:
    """Whether no slot of the batches before a generation can change any more."""
    stop = through_slot(generation, config)
    return all(population.slot(slot).status in CLOSED for slot in range(min(stop, end)))


def _current(state: SlotState, attempt: int) -> bool:
    if attempt > state.attempt:
        raise RecordError(
            f"slot {state.slot}: attempt {attempt} is recorded while attempt {state.attempt} is not over; "
            "the journal lacks lines, use `asiarch rebuild`"
        )
    return attempt == state.attempt and state.status not in CLOSED


def _with(population: Population, state: SlotState) -> Population:
    return replace(population, slots={**population.slots, state.slot: state})
