"""Phases are disjoint: never below zero, and together the time that was measured."""

from __future__ import annotations

import pytest

from passk_fast.run.clock import Clock


class Seconds:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_phases_add_up_to_the_time_inside_of_spans() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    for name, taken in (("decode", 5.0), ("train", 2.0), ("decode", 1.0)):
        with clock.span(name):
            seconds.now += taken
    seconds.now += 0.5
    assert clock.take() == {"decode": 6.0, "train": 2.0, "total": 8.5}
    assert clock.take() == {"total": 0.0}


def test_what_was_taken_so_far_goes_on() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    with clock.span("train"):
        seconds.now += 2.0
    with clock.span("checkpoint"):
        seconds.now += 1.0
        assert clock.so_far() == {"train": 2.0, "total": 3.0}
    assert clock.take() == {"train": 2.0, "checkpoint": 1.0, "total": 3.0}


def test_a_span_is_split_into_its_parts() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    with clock.span("decode") as span:
        seconds.now += 5.0
        span.split(verify=1.5, idle=0.5)
    assert clock.take() == {"decode": 3.0, "verify": 1.5, "idle": 0.5, "total": 5.0}


def test_parts_of_another_clock_never_make_a_phase_negative() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    with clock.span("decode") as span:
        seconds.now += 5.0
        span.split(verify=4.0, idle=1.25)
    taken = clock.take()
    assert taken == {"decode": 0.0, "verify": 4.0, "idle": 1.0, "total": 5.0}


def test_concurrent_work_is_not_part_of_the_sum() -> None:
    seconds = Seconds()
    clock = Clock(seconds)
    with clock.span("train"):
        seconds.now += 2.0
    clock.concurrent("overlap_sampling_s", 1.75)
    assert clock.take() == {"train": 2.0, "overlap_sampling_s": 1.75, "total": 2.0}


def test_negative_parts_and_spans_in_spans_are_refused() -> None:
    clock = Clock(Seconds())
    with pytest.raises(ValueError, match=r"'verify' cannot have taken -1"), clock.span("a") as span:
        span.split(verify=-1.0)
    with (
        clock.span("decode"),
        pytest.raises(RuntimeError, match="'verify' begins inside"),
        clock.span("verify"),
    ):
        pass


def test_a_span_that_raises_is_measured_and_over() -> None:
    seconds = Seconds()
    clock = Clock(seconds)

    def fail() -> None:
        seconds.now += 1.0
        raise KeyError

    with pytest.raises(KeyError), clock.span("train"):
        fail()
    with clock.span("sync"):
        seconds.now += 1.0
    assert clock.take() == {"train": 1.0, "sync": 1.0, "total": 2.0}
