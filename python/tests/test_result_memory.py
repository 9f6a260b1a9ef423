"""`ResultMemory` alone: which batch gets memory for its results, and what it reserves."""

import mmap

import numpy as np
import pytest

from tidegate.errors import BudgetError
from tidegate.processes import ResultMemory

PAGE = mmap.PAGESIZE


class Heap:
    """Memory of some pages, as a budget gives it."""

    def __init__(self, pages):
        self.pages = pages

    def __call__(self, shape, dtype):
        array = np.empty(shape, dtype)
        if array.nbytes > self.pages * PAGE:
            raise BudgetError(f"{array.nbytes} bytes")
        self.pages -= -(-array.nbytes // PAGE)
        return array


def pages(n):
    return [([n * PAGE], "uint8")]


def test_until_a_batch_has_finished_the_next_waits():
    memory = ResultMemory(Heap(100))
    memory.begin(5)
    assert memory.turn == 5
    memory.take(5, pages(1))
    assert memory.turn == 5, "what it will request later is not known"
    memory.succeeded(5)
    memory.finish(5)
    assert memory.turn == 6


def test_then_a_first_request_is_enough_and_later_ones_are_reserved():
    heap = Heap(100)
    memory = ResultMemory(heap)
    memory.begin(0)
    memory.take(0, pages(1))
    memory.take(0, pages(3))
    memory.succeeded(0)
    memory.finish(0)
    assert heap.pages == 96
    memory.take(1, pages(1))
    assert memory.turn == 2, "batch 2 need not wait for batch 1"
    assert heap.pages == 92, "3 pages are reserved for the second request"
    (array,) = memory.take(1, [((PAGE, 3), "uint8")])
    assert array.shape == (PAGE, 3)
    assert heap.pages == 92, "it came from what was reserved"
    memory.take(1, pages(1))
    assert heap.pages == 91, "a third request is new"


def test_the_reservation_grows_to_the_most_that_any_batch_requested():
    heap = Heap(100)
    memory = ResultMemory(heap)
    memory.begin(0)
    for index, later in enumerate([2, 5, 1]):
        memory.take(index, pages(1))
        memory.take(index, pages(later))
        memory.succeeded(index)
        memory.finish(index)
    before = heap.pages
    memory.take(3, pages(1))
    assert before - heap.pages == 1 + 5


def test_two_arrays_of_one_request_do_not_share_a_page():
    memory = ResultMemory(Heap(100))
    memory.begin(0)
    memory.take(0, pages(1))
    memory.take(0, pages(2))
    memory.succeeded(0)
    memory.finish(0)
    memory.take(1, pages(1))
    one, other = memory.take(1, [((10,), "float32"), ((3,), "int64")])
    place = [a.__array_interface__["data"][0] for a in (one, other)]
    assert place[1] - place[0] == PAGE
    assert (one.dtype, other.dtype) == (np.float32, np.int64)


def test_a_refused_request_can_be_made_again():
    heap = Heap(4)
    memory = ResultMemory(heap)
    memory.begin(0)
    with pytest.raises(BudgetError):
        memory.take(0, pages(5))
    assert memory.turn == 0
    heap.pages = 10
    memory.take(0, pages(5))
    memory.take(0, pages(4))
    memory.succeeded(0)
    memory.finish(0)
    heap.pages = 3
    with pytest.raises(BudgetError):
        memory.take(1, pages(1))
    assert memory.turn == 1, "without its reservation, the first request is still to be made"
    heap.pages = 5
    memory.take(1, pages(1))
    assert (heap.pages, memory.turn) == (0, 2)


def test_a_batch_that_failed_lets_the_next_go_on_and_tells_nothing():
    heap = Heap(100)
    memory = ResultMemory(heap)
    memory.begin(0)
    memory.take(0, pages(1))
    memory.take(0, pages(7))
    memory.finish(0)
    assert memory.turn == 1
    memory.take(1, pages(1))
    assert memory.turn == 1, "still no batch has succeeded"
    assert heap.pages == 91


def test_batches_may_finish_in_any_order():
    memory = ResultMemory(Heap(100))
    memory.begin(0)
    for index in (2, 1, 3):
        memory.finish(index)
        assert memory.turn == 0
    memory.finish(0)
    assert memory.turn == 4
    memory.finish(2)
    assert memory.turn == 4
    memory.begin(2)
    assert memory.turn == 2
