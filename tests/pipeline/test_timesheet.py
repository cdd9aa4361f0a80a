"""Whose time it is, by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from common.timesheet import Spent, Timesheet


def test_time_in_no_turn_is_parted_equally_and_is_alone_only_where_one_is_begun() -> None:
    times = Timesheet()
    times.begin("a", 10.0)
    times.begin("b", 12.0)
    assert times.end("a", 16.0) == Spent(own_s=4.0, alone_s=2.0)
    assert times.end("b", 17.0) == Spent(own_s=3.0, alone_s=1.0)
    times.begin("c", 30.0)  # until then nobody was begun: nobody's time
    assert times.spent("c", 30.0) == Spent(0.0, 0.0)


def test_a_turn_takes_all_and_turns_at_once_are_parted_by_their_weights() -> None:
    times = Timesheet()
    for name in ("a", "b", "c"):
        times.begin(name, 0.0)
    times.enter("a", 1.0, 0.0)
    times.leave("a", 5.0)
    times.enter("b", 3.0, 5.0)
    times.enter("c", 1.0, 5.0)
    times.leave("b", 9.0)
    times.leave("c", 10.0)
    assert times.spent("a", 13.0) == Spent(own_s=6.0, alone_s=5.0)
    assert times.spent("b", 13.0) == Spent(own_s=4.0, alone_s=0.0)
    assert times.spent("c", 13.0) == Spent(own_s=3.0, alone_s=1.0)


def test_a_turn_within_a_turn_counts_once() -> None:
    times = Timesheet()
    times.begin("a", 0.0)
    times.begin("b", 0.0)
    times.enter("a", 1.0, 0.0)
    times.enter("a", 1.0, 1.0)
    times.leave("a", 2.0)
    times.leave("a", 4.0)
    assert times.spent("a", 4.0) == Spent(own_s=4.0, alone_s=4.0)
    assert times.spent("b", 4.0) == Spent(0.0, 0.0)


def test_who_ends_within_its_turn_takes_it_along() -> None:
    """A stopping worker gives back what is still being computed."""
    times = Timesheet()
    times.begin("a", 0.0)
    times.begin("b", 0.0)
    times.enter("a", 1.0, 0.0)
    assert times.end("a", 2.0) == Spent(2.0, 2.0)
    times.leave("a", 3.0)
    assert times.spent("b", 3.0) == Spent(1.0, 1.0)
    assert times.spent("a", 3.0) is None
    assert times.end("a", 3.0) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_parts_add_up_to_the_time(seed: int) -> None:
    rng = random.Random(seed)
    times, names = Timesheet(), [str(number) for number in range(6)]
    for name in names:
        times.begin(name, 0.0)
    for now in itertools.accumulate(rng.random() for _ in range(200)):
        name = rng.choice(names)
        if rng.random() < 0.5:
            times.enter(name, rng.uniform(0.1, 20.0), now)
        else:
            times.leave(name, now)
    spent = [times.end(name, 500.0) for name in names]
    assert sum(one.own_s for one in spent if one) == pytest.approx(500.0)
