"""Workers: processes with a model each, which measure what they are handed and are replaced when they die.

A worker has one thing to do at a time. So when it dies, what it was doing is known, and that alone is done again.
"""

from __future__ import annotations

import re
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnsight_mmflow import _errors
from nnsight_mmflow._errors import MMFlowError
from nnsight_mmflow.runs.identity import model_facts
from nnsight_mmflow.runs.results import versions
from nnsight_mmflow.workers.ray import cluster, per_node, share

if TYPE_CHECKING:
    from nnsight_mmflow.model.graph import Graph

DEATHS = 3  # so often may one prompt, or loading, lose its worker: more often is no accident
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Ray paints its errors
PATIENCE = 60.0  # seconds without news before it is said what is waited for


@dataclass(frozen=True)
class Answer:
    """What a worker sends back; what went wrong travels as text, since not every exception can be sent.

    Attributes:
        value: the result.
        error: the name of the exception's class; "" if all went well.
        message: what the exception says.
        where: its traceback, as Python prints it.
    """

    value: dict
    error: str = ""
    message: str = ""
    where: str = ""


class Worker:
    """What runs in a worker's process; Ray makes an actor of it."""

    graph: Graph

    def load(self, how: Mapping[str, Any], threads: int) -> Answer:
        """Loads the model, and says which it is; as many threads as the driver has, since sums depend on them."""
        import torch

        from nnsight_mmflow.model.load import load

        torch.set_num_threads(threads)

        def loaded() -> dict:
            self.graph = load(**how)
            return facts(self.graph)

        return _answer(loaded)

    def do(self, task: Callable[..., dict], given: tuple) -> Answer:
        """The task on the model and what is given."""
        return _answer(lambda: task(self.graph, *given))


def _answer(made: Callable[[], dict]) -> Answer:
    try:
        return Answer(made())
    except Exception as error:  # all of them: the driver decides what they mean
        return Answer({}, type(error).__name__, str(error), traceback.format_exc())


def facts(graph: Graph) -> dict[str, object]:
    """What must be the same in all workers, and in the driver as far as it knows, or numbers would not belong together.

    A driver without weights cannot tell in which type they will be loaded, either.
    """
    if all(weight.is_meta for weight in graph.model._module.parameters()):
        return outline(graph)
    return {"n_layers": graph.n_layers, **model_facts(graph)}


def outline(graph: Graph) -> dict[str, object]:
    """The same of a model whose weights do not matter: not here, or loaded otherwise by workers."""
    return {
        "family": graph.family,
        "n_layers": graph.n_layers,
        "attention": graph.backend,
        "versions": versions(),
    }


class Crew:
    """So many workers. They start when there is something to do, and end with the context.

    Attributes:
        workers: how many at most.
        how: keyword arguments of `mmf.load`, for each worker.
        expected: the facts that each worker's model has to share.
        address: of the Ray cluster.
        report: where is told what happens.
    """

    def __init__(
        self,
        workers: int,
        how: Mapping[str, Any],
        expected: Mapping[str, object],
        address: str | None,
        report: Callable[[str], None],
    ) -> None:
        self.workers, self.how, self.expected = workers, how, expected
        self.address, self.report = address, report
        self.stack = ExitStack()
        self.ray: Any = None
        self.busy: dict[Any, tuple[Any, int | None]] = {}  # what is awaited: by whom, which job (None: loading)
        self.idle: list[Any] = []
        self.deaths: Counter[int | None] = Counter()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        if self.ray is not None:
            for worker in [*self.idle, *(worker for worker, _ in self.busy.values())]:
                self.ray.kill(worker)
        self.stack.close()

    def results(self, task: Callable[..., dict], jobs: list[tuple], names: list[str]) -> Iterator[dict]:
        """The task's results on all jobs, as they are finished.

        Args:
            task: a function of a module, taking the graph and what a job holds.
            jobs: what each job hands it.
            names: what errors call each job.

        Raises:
            MMFlowError: a worker's error (of its own kind, if it is one of this package's), told with the job's name;
                or one job that lost its worker three times; or a model that is another than the driver's.
        """
        if not jobs:
            return
        if self.ray is None:
            self._start()
        waiting = deque(range(len(jobs)))
        left = len(jobs)
        while left:
            self._staff(waiting, task, jobs)
            job, value = self._turn(names)
            if job is None:
                continue
            if value is None:
                waiting.append(job)  # at the end: a prompt that kills its workers does not keep the others waiting
                continue
            left -= 1
            yield value

    def known(self, graph: Graph) -> Graph:
        """The graph, which knows whose numbers a folder holds: without weights here, a worker tells."""
        if "weights" in self.expected:
            return graph
        known = self.model()
        return graph.but(known_as={name: value for name, value in known.items() if name != "n_layers"})

    def model(self) -> dict:
        """The facts of the first worker's model, loaded for this; all others must have the same from then on."""
        if self.ray is None:
            self._start()
        while True:
            if not self.busy:
                self._hire()
            job, value = self._turn([])
            if job is None and value is not None:
                self.expected = value
                return value

    def _turn(self, names: list[str]) -> tuple[int | None, dict | None]:
        """(a job, or None for loading; what came of it, None if nothing did)."""
        ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=PATIENCE)
        if not ready:
            self._tell_patience()
            return None, None
        worker, job = self.busy.pop(ready[0])
        doing = f"loading {self.how['name']}" if job is None else names[job]
        try:
            answer = self.ray.get(ready[0])
        except self.ray.exceptions.RayTaskError:  # not a death: what was sent could not be read
            raise
        except self.ray.exceptions.RayError as error:
            self._bury(worker, job, doing, str(error))
            return job, None
        self.idle.append(worker)
        if answer.error:
            raise _told(doing, answer)
        if job is None:
            self.deaths[None] = 0
            self._compare(answer.value)
        return job, answer.value

    def _start(self) -> None:
        self.ray = self.stack.enter_context(cluster(self.workers, self.address))
        gpus, asked = per_node(self.ray.nodes(), "GPU"), self.how.get("device_map")
        wants = asked is not None and str(asked) != "cpu"
        if wants and not sum(gpus):
            raise MMFlowError(
                f"the model should go to {asked!r}, but Ray's cluster has no GPU: `ray status` lists what it has."
                " Leave the device out to run on CPUs."
            )
        self.needs = {
            "num_cpus": min(1, share(per_node(self.ray.nodes(), "CPU"), self.workers)),
            "num_gpus": share(gpus, self.workers) if wants else 0,
        }
        unused = "" if wants or not sum(gpus) else f"; {sum(gpus):g} GPU(s) stay unused, device_map='cuda' uses them"
        each = f"{self.needs['num_gpus']:g} GPU" if wants else "on CPU"
        self.report(f"{self.workers} worker(s) by Ray, each loads {self.how['name']} ({each}){unused}.")

    def _staff(self, waiting: deque[int], task: Callable[..., dict], jobs: list[tuple]) -> None:
        """Hands out jobs, and starts workers while there are more jobs than those that load could take."""
        while waiting and self.idle:
            worker, job = self.idle.pop(), waiting.popleft()
            self.busy[worker.do.remote(task, jobs[job])] = worker, job
        loading = sum(job is None for _, job in self.busy.values())
        while loading < len(waiting) and len(self.busy) + len(self.idle) < self.workers:
            self._hire()
            loading += 1

    def _hire(self) -> None:
        """Starts a worker, which loads its model."""
        import torch

        made = self.ray.remote(Worker).options(**self.needs, scheduling_strategy="SPREAD")
        worker = made.remote()
        self.busy[worker.load.remote(dict(self.how), torch.get_num_threads())] = worker, None

    def _bury(self, worker: Any, job: int | None, what: str, why: str) -> None:
        """Counts a worker's death."""
        self.ray.kill(worker)  # where it only could not be reached, it must not go on beside the next one
        self.deaths[job] += 1
        if self.deaths[job] >= DEATHS:
            raise MMFlowError(
                f"{what} lost its worker {DEATHS} times: the process ended, as it does when memory runs out. What is"
                " finished stays in the folder. Fewer workers leave each more memory, a smaller row_budget needs less."
                f"\nRay says: {COLOUR.sub('', why)}"
            )
        self.report(
            f"{what}: its worker died; another takes over (death {self.deaths[job]}, at {DEATHS} it is given up)."
        )

    def _compare(self, there: Mapping[str, object]) -> None:
        changed = [name for name, here in self.expected.items() if here and there.get(name) != here]
        if changed:
            diff = "; ".join(f"{name} is {there.get(name)!r}, here {self.expected[name]!r}" for name in changed)
            raise MMFlowError(
                f"a worker's model is not the driver's ({diff}). Weights differ after an edit that was applied here, or"
                " where the folder holds another model there: save the model and load the copy on both sides."
            )

    def _tell_patience(self) -> None:
        loading = sum(job is None for _, job in self.busy.values())
        free = self.ray.available_resources()
        self.report(
            f"no news for {PATIENCE:.0f} s: {len(self.busy) - loading} worker(s) measure, {loading} load or wait for a"
            f" place (each needs {self.needs}; free are {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU)."
        )


def _told(what: str, answer: Answer) -> MMFlowError:
    """A worker's error, of the same kind where it is this package's own, else with its traceback."""
    kind = getattr(_errors, answer.error, None)
    if kind is not None:
        return kind(f"{what}, on a worker: {answer.message}")
    return MMFlowError(
        f"{what} failed on a worker: {answer.error}: {answer.message}. What is finished stays in the folder; run it"
        f" again to go on. On the worker:\n{answer.where}"
    )
