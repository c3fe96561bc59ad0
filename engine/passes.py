"""Runs forward passes side by side on a CPU, one to a thread."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Pass = TypeVar("Pass")
Result = TypeVar("Result")


def side_by_side(compute: Callable[[Pass], Result], passes: Sequence[Pass]) -> Iterator[Result]:
    """`compute` of each pass, in order, as many at once as torch has threads.

    Threads that share a pass wait for each other after every operation of it, threads with a pass of their
    own do not. Passes that would leave a thread idle at the end are computed one after the other, by all
    threads.

    `compute` must be safe to call from several threads, and set inference mode by itself, as that is a
    thread's own. An error ends the passes that have not begun.
    """
    threads = torch.get_num_threads()
    shared = len(passes) % threads  # by all threads, at the end
    alone = len(passes) - shared
    if threads > 1 and alone:
        pool = ThreadPoolExecutor(threads, "pass", initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(compute, passes[:alone])
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # which the others also set for threads that begin later
    else:
        shared = len(passes)
    yield from map(compute, passes[len(passes) - shared :])
