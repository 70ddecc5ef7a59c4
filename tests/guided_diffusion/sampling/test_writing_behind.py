"""Finished work is written while the next is being made, in order, and failures come out."""

from __future__ import annotations

import threading

import pytest

from guided_diffusion.sampling.shards import writing_behind


def test_work_goes_on_meanwhile():
    next_is_made, written = threading.Event(), []

    def slow(number: int) -> None:
        assert next_is_made.wait(timeout=30)
        written.append(number)

    with writing_behind(slow) as write:
        write(1)
        assert not written
        next_is_made.set()
        write(2)
    assert written == [1, 2]


def test_a_failure_comes_out_of_the_next_call_or_of_the_end():
    def fail(number: int) -> None:
        raise OSError(f"disk full at {number}")

    with pytest.raises(OSError, match="disk full at 1"), writing_behind(fail) as write:
        write(1)
        write(2)
    with pytest.raises(OSError, match="disk full at 3"), writing_behind(fail) as write:
        write(3)


def test_what_was_finished_before_a_failure_is_written():
    written = []
    with pytest.raises(ZeroDivisionError), writing_behind(written.append) as write:
        write(1)
        raise ZeroDivisionError
    assert written == [1]
