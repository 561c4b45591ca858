"""A run that goes on beside: its state is asked for, its result waited for or awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from typing import Any, Generic, TypeVar

from nnsight_mmflow._errors import MMFlowError

Found = TypeVar("Found")


class Job(Generic[Found]):
    """What an experiment returns with `blocking=False`: it runs in a thread of this process.

    With `folder=` what is finished stays, also if the process ends: the same call goes on there.
    """

    def __init__(self, name: str, tasks: int, run: Callable[[Callable[[], None]], Found]) -> None:
        """Starts it.

        Args:
            name: of the experiment.
            tasks: how many things it measures.
            run: gets the result; it calls what it is handed whenever one of them is finished.
        """
        self.name, self.tasks, self.finished = name, tasks, 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"mmflow {name}")
        self._future = self._thread.submit(run, self._count)
        self._thread.shutdown(wait=False)

    def _count(self) -> None:
        self.finished += 1

    @property
    def status(self) -> dict[str, int]:
        """How many prompts are FETCHED, RUNNING or, after an error, FAILED."""
        left = self.tasks - self.finished
        if not left or (self._future.done() and self._future.exception() is None):
            return {"FETCHED": self.tasks}
        now = {"FETCHED": self.finished, "FAILED" if self._future.done() else "RUNNING": left}
        return {state: count for state, count in now.items() if count}

    def result(self, every: float = 1.0, timeout: float | None = None) -> Found:
        """Waits until all is done, and returns the experiment's result.

        Args:
            every: seconds between two looks, for jobs of a server.
            timeout: how many seconds to wait at most; None: as long as it takes.

        Raises:
            MMFlowError: what the experiment raises; or the time is over, and it goes on.
        """
        try:
            return self._future.result(timeout)
        except Late:
            if self._future.done():
                raise
            raise MMFlowError(f"after {timeout} seconds {self}: call result() again later.") from None

    async def wait(self, every: float = 1.0, timeout: float | None = None) -> Found:
        """The same as `result`, awaited: other work goes on meanwhile. `await job` waits as long as it takes."""
        return await asyncio.to_thread(self.result, every, timeout)

    def __await__(self) -> Generator[Any, Any, Found]:
        return self.wait().__await__()

    def __repr__(self) -> str:
        return f"Job({self.name}: {self.finished} of {self.tasks} finished, {' '.join(self.status)})"
