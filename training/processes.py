"""What the processes of a run tell each other, so that none waits for one that has failed."""

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

Answer = TypeVar("Answer")


@contextmanager
def shared_errors(accelerator: Accelerator) -> Iterator[None]:
    """Raises in every process what one raises in here; at its end they wait for each other.

    Every process must enter it. A process raises its own error, otherwise that of the first that has one.
    """
    own = None
    try:
        yield
    except Exception as raised:
        own = raised
    told = []
    if accelerator.num_processes > 1:
        try:
            told = gather_object([_told(own)])
        except RuntimeError as gone:  # another process, or its machine
            told = [gone]
    for error in (own, *told):
        if error is not None:
            raise error


@contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Lets the others begin when the main process has ended; the errors of all are shared."""
    if not accelerator.is_main_process:
        with shared_errors(accelerator):
            pass
    with shared_errors(accelerator):
        yield
    if accelerator.is_main_process:
        with shared_errors(accelerator):
            pass


def of_main_process(accelerator: Accelerator, function: Callable[[], Answer]) -> Answer:
    """What `function` returns on the main process, in every process; or its error, raised in every one."""
    answer = None
    with shared_errors(accelerator):
        if accelerator.is_main_process:
            answer = function()
    return cast(Answer, broadcast_object_list([answer])[0])


def _told(error: Exception | None) -> Exception | None:
    """The error, or one that says the same where it cannot be sent."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(str(error))
