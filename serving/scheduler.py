"""Which texts run next: a pure rule over what waits and what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from poolgraph.runtime.executor import Slots
from poolgraph.runtime.planner import MIN_SPLIT_TOKENS, BatchLayout
from poolgraph.serving.backlog import Backlog, Group
from poolgraph.serving.pending import PendingText
from poolgraph.tasks import RunFamily

ENOUGH_TEXTS: Final = 4
"""Texts of one length beyond which a larger batch is hardly quicker a text (measured: 4 against 8, 3 %; 1, 18 %)."""

MOST_PASSED_OVER: Final = 2
"""Batches that may go before the text whose turn is first, because more texts of another length wait together."""

COMPANY_SECONDS: Final = 0.05
"""How long after two requests met a batch gets no more than its own threads. One that gets all of them keeps others
waiting, and its threads go on spinning beside the next batches (measured: without, 2 clients get 11 % more answers, 16
clients 8 %, for 70 and 90 % of the processor time)."""

LONG_BATCHES: Final = 4
"""A batch of more than so many token budgets is long: such do not take the last slot from shorter texts."""

LEAST_FILL: Final = 0.75
"""Length of the shortest text of a padded batch as a share of its longest."""

MOST_LEFT: Final = 8
"""Texts that are looked at in vain for one that fits what a packed batch has room for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How batches are made.

    Attributes:
        slots: What of the machine there is.
        max_wait: Seconds that a text waits for company while the engine is at work.
    """

    slots: Slots
    max_wait: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What runs now.

    Attributes:
        num_batches: Batches under way.
        num_long: Those of them that are long.
        exclusive: Whether one of them has all threads.
        has_company: Whether requests met here, one waiting or running when another came, within COMPANY_SECONDS.
    """

    num_batches: int = 0
    num_long: int = 0
    exclusive: bool = False
    has_company: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NextBatch:
    """Texts that run now.

    Attributes:
        family: The graph.
        texts: The texts; still in the backlog.
        threads: Threads of the run.
        num_tokens: Tokens that the batch computes, padding included.
        long: Whether the batch is long.
        exclusive: Whether it has all threads, so that no batch runs beside it.
    """

    family: RunFamily
    texts: tuple[PendingText, ...]
    threads: int
    num_tokens: int
    long: bool
    exclusive: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing runs yet; what waits is looked at again after ``seconds``."""

    seconds: float


def make_backlog(slots: Slots) -> Backlog:
    """Make a backlog whose groups are what batches of a layout are made of."""
    return Backlog(slots.max_batch_tokens if slots.layout == "packed" else 0)


def choose_batch(backlog: Backlog, load: Load, rules: Rules, now: float) -> NextBatch | Wait | None:
    """Choose what runs next.

    The text whose turn is first, by priority and then by its place in the queue, runs with others of its graph up to
    the token budget: those of its length, in padded layouts of neighbouring lengths, in packed ones those whose turns
    are next. In the uniform layout it is passed over a few times for texts of its priority that fill a batch better.
    While other slots are free, batches are kept small enough to leave them work; padded ones and those that take turns
    on a device are not. All threads are for what is the only request for a while.

    Args:
        backlog: What waits, made by ``make_backlog``; only ``passed_over`` is changed.
        load: What runs.
        rules: How batches are made.
        now: The time, on the clock of ``PendingRun.arrived``.

    Returns:
        A batch; how long to wait for company; or None where nothing can run before something else ends or arrives.
    """
    slots = rules.slots
    if load.exclusive or load.num_batches >= slots.runs or not backlog.num_texts:
        return None
    group = _choose_group(backlog, load, slots)
    if group is None:
        return None
    texts = _FILL[slots.layout](backlog, group, load, slots)
    lengths = [len(text.encoded.input_ids) for text in texts]
    num_tokens = sum(lengths) if slots.layout == "packed" else max(lengths) * len(lengths)
    if patience := _patience(texts, num_tokens, load, rules, now):
        return Wait(patience)
    alone = not load.num_batches and len(texts) == backlog.num_texts and not load.has_company
    return NextBatch(
        family=group.family,
        texts=tuple(texts),
        threads=slots.lone_threads if alone else slots.threads,
        num_tokens=num_tokens,
        long=_is_long(max(lengths), slots),
        exclusive=alone and slots.lone_threads > slots.threads,
    )


def _choose_group(backlog: Backlog, load: Load, slots: Slots) -> Group | None:
    groups = list(backlog.groups())
    if slots.runs > 1 and load.num_long >= slots.runs - 1:
        groups = [group for group in groups if not _is_long(group.length, slots)]
    if not groups:
        return None
    first = min(groups, key=lambda group: group.head().order)
    best = first
    if slots.layout == "uniform" and backlog.passed_over < MOST_PASSED_OVER:
        best = _find_fuller(groups, first, slots)
    backlog.passed_over = 0 if best is first else backlog.passed_over + 1
    return best


def _find_fuller(groups: list[Group], first: Group, slots: Slots) -> Group:
    """Return the group as urgent as ``first`` of which most texts run together, as far as that matters."""
    best, most, priority = first, _count_together(first, slots), first.head().order[0]
    for group in groups:
        if group.count > most and group.head().order[0] == priority and _count_together(group, slots) > most:
            best, most = group, _count_together(group, slots)
    return best


def _count_together(group: Group, slots: Slots) -> int:
    return min(group.count, ENOUGH_TEXTS, max(1, slots.max_batch_tokens // group.length))


def _fill_uniform(backlog: Backlog, group: Group, load: Load, slots: Slots) -> list[PendingText]:
    """Take the fewest parts of a group that fit, of even size, small enough to leave the other free slots work."""
    free = slots.runs - load.num_batches
    share = max(MIN_SPLIT_TOKENS, -(-backlog.num_tokens // free))
    limit = max(1, min(slots.max_batch_tokens, share) // group.length)
    num_parts = -(-group.count // limit)
    return group.first(-(-group.count // num_parts))


def _fill_packed(backlog: Backlog, group: Group, load: Load, slots: Slots) -> list[PendingText]:
    """Take the texts whose turns are first while they fit: the budget, and an even share of what waits.

    One that does not fit is left for the next batch, and with it those that are less urgent. A device that runs one
    batch after the other is quickest with full ones.
    """
    room = slots.max_batch_tokens if slots.in_turn else _even_share(backlog, slots.runs - load.num_batches, slots)
    texts: list[PendingText] = []
    left: list[PendingText] = []
    for text in group.in_order():
        if room <= 0 or len(left) > MOST_LEFT or (left and text.order[0] > left[0].order[0]):
            break
        length = len(text.encoded.input_ids)
        if length <= room or not texts:
            texts.append(text)
            room -= length
        else:
            left.append(text)
    return texts


def _even_share(backlog: Backlog, free: int, slots: Slots) -> int:
    """Return the tokens of a batch when what waits is divided among free slots, in as few rounds as there must be."""
    rounds = -(-backlog.num_tokens // (free * slots.max_batch_tokens))
    share = -(-backlog.num_tokens // (free * rounds))
    return min(slots.max_batch_tokens, max(MIN_SPLIT_TOKENS, share))


def _fill_padded(backlog: Backlog, group: Group, load: Load, slots: Slots) -> list[PendingText]:
    """Take the text whose turn is first, then texts of near lengths while the padded batch fits the budget."""
    texts = [group.head()]
    shortest = longest = group.length
    for other in backlog.neighbours(group):
        low, high = min(shortest, other.length), max(longest, other.length)
        room = slots.max_batch_tokens // high - len(texts)
        if low < LEAST_FILL * high or room < 1:
            break
        candidates = [text for text in other.first(room + 1) if text is not texts[0]]
        texts += candidates[:room]
        shortest, longest = low, high
    return texts


_FILL: Final[Mapping[BatchLayout, Callable[[Backlog, Group, Load, Slots], list[PendingText]]]] = MappingProxyType(
    {"uniform": _fill_uniform, "padded": _fill_padded, "packed": _fill_packed}
)


def _patience(texts: list[PendingText], num_tokens: int, load: Load, rules: Rules, now: float) -> float:
    """Return how long these texts still wait for company: not at all with nothing else at work, or in a full batch."""
    one_more = num_tokens + num_tokens // len(texts)
    if not load.num_batches or one_more > rules.slots.max_batch_tokens:
        return 0.0
    return max(0.0, min(text.run.arrived for text in texts) + rules.max_wait - now)


def _is_long(length: int, slots: Slots) -> bool:
    return length > LONG_BATCHES * slots.max_batch_tokens
