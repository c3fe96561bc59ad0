"""Runs forward passes side by side on a CPU, one to a thread, and reads ahead for a GPU."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Batch = TypeVar("Batch")
Result = TypeVar("Result")


def side_by_side(compute: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
    """`compute` of each batch, in order, as many at once as torch has threads.

    Threads that share a batch wait for each other after every operation of it, threads with a batch of their
    own do not. Batches that would leave a thread idle at the end are computed one after the other, by all
    threads.

    `compute` must be safe to call from several threads, and set inference mode by itself, as that is a
    thread's own. An error ends the batches that have not begun.
    """
    threads = torch.get_num_threads()
    shared = len(batches) % threads  # by all threads, at the end
    alone = len(batches) - shared
    if threads > 1 and alone:
        pool = ThreadPoolExecutor(threads, "batch", initializer=torch.set_num_threads, initargs=(1,))
        try:
            yield from pool.map(compute, batches[:alone])
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)  # which the others also set for threads that begin later
    else:
        shared = len(batches)
    yield from map(compute, batches[len(batches) - shared :])


def one_ahead(read: Callable[[Batch], Result], batches: Sequence[Batch]) -> Iterator[Result]:
    """`read` of each batch, in order; a thread reads the next one while the caller works with this one."""
    with ThreadPoolExecutor(1, "read") as pool:
        coming = pool.submit(read, batches[0]) if batches else None
        for following in batches[1:]:
            assert coming is not None
            ready, coming = coming.result(), pool.submit(read, following)
            yield ready
        if coming is not None:
            yield coming.result()
