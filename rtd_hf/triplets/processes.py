"""Work shared among processes, with the results in order."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Any


_UNDER_WAY = 2  # tasks for each process at a time; more would hold more of the input in memory


@contextmanager
def mapped(function: Callable[[Any], Any], workers: int) -> Iterator[Callable[[Iterable], Iterator]]:
    """
    A lazy `map` over processes.

    Args:
        function (`Callable`): Of a module's top level, so that processes find it.
        workers (`int`): Processes; with one, this process does the work.

    Yields:
        `Callable[[Iterable], Iterator]`: Results in the order of the tasks, which are read as processes come free.

    Raises:
        ChildProcessError: a process was killed, such as for want of memory.
    """
    if workers == 1:
        yield lambda tasks: map(function, tasks)
        return
    with ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(),)) as pool:

        def lazily(tasks: Iterable) -> Iterator:
            tasks = iter(tasks)
            ahead = [pool.submit(function, task) for task in islice(tasks, _UNDER_WAY * workers)]
            while ahead:
                done = ahead.pop(0).result()
                ahead += [pool.submit(function, task) for task in islice(tasks, 1)]
                yield done

        try:
            yield lazily
        except BrokenProcessPool as error:
            raise ChildProcessError(
                f"One of the {workers} processes was killed, perhaps for want of memory. Use fewer `workers`."
            ) from error


def _begin(parent: int) -> None:
    """
    At the start of a process. It ends soon after its parent did: a parent that is killed cannot tell those it started,
    and they would wait for work for ever. Ctrl-C is left to the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    if os.getppid() == parent:  # a fork server may stand between them
        threading.Thread(target=watch, daemon=True).start()
