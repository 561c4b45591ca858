"""Where a graph's traces run: here, on NDIF in the model's process, or on NDIF apart from it; and what travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nnsight_mmflow._errors import MMFlowError, ModelError, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

    import torch
    from nnsight import TransformersModel
    from nnsight.intervention.tracer import InterleavingTracer
    from nnsight.schema.request import RequestModel
    from nnsight.schema.response import ResponseModel
    from nnsight.tracing.backend import Backend

EXPIRED = (403, 404, 410)  # what a store answers for a result that is no longer kept


@dataclass
class Traffic:
    """What has travelled between a graph and its server, as it was sent: compressed.

    Attributes:
        requests: how many were sent.
        up: bytes sent.
        down: bytes of results that came back.
    """

    requests: int = 0
    up: int = 0
    down: int = 0

    def __sub__(self, before: Traffic) -> Traffic:
        return Traffic(self.requests - before.requests, self.up - before.up, self.down - before.down)

    def __str__(self) -> str:
        return f"{self.requests} request(s), {self.up / 1e3:.1f} kB up, {self.down / 1e3:.1f} kB down"


class Placed:
    """A graph's place. A Graph is one.

    Attributes:
        model: the nnsight model.
        remote: False, True (NDIF), a host, or "local" (nnsight's own imitation).
        trusted: whether NDIF runs this key's blocks in the model's process.
        traffic: what has travelled so far, of this graph and of those made from it.
        known_as: what its workers say of the model that they hold, where this process has none; see `runs.identity`.
        name, device: of the model.
    """

    model: TransformersModel
    remote: bool | str = False
    trusted: bool = False
    traffic: Traffic
    known_as: dict[str, object] | None = None
    name: str
    device: torch.device

    def at(self, remote: bool | str | None, trusted: bool | None = None) -> Self:
        """The same graph, its traces on NDIF: True, a host, "local"; `trusted`: its key runs in the model's process."""
        remote = self.remote if remote is None else remote
        if not isinstance(remote, bool | str) or remote == "":
            raise MMFlowError(f"remote is True (NDIF), False, or a host, but {remote!r} came.")
        trusted = self.trusted if trusted is None else trusted
        if (remote, trusted) == (self.remote, self.trusted):
            return self
        return self.but(remote=remote, trusted=trusted)

    def but(self, **changed: object) -> Self:
        """The same graph with some attributes changed."""
        there = object.__new__(type(self))  # not copy(), which leaves behind what does not travel
        vars(there).update(vars(self), **changed)
        return there

    def check_weights(self, given: Mapping[str, object]) -> None:
        """Refuses to run here a model that was loaded without weights.

        Raises:
            ModelError: it was, and neither the graph nor a backend in `given` says where else.
        """
        if not self.remote and "backend" not in given and self.device.type == "meta":
            raise ModelError(
                f"{self.name} was loaded without weights (dispatch=False), so nothing can run here: leave dispatch out,"
                " or run it elsewhere: remote=True, or mmf.flow(..., workers=N)."
            )

    def in_turn(self, make: Callable[[], InterleavingTracer]) -> InterleavingTracer:
        """The tracer that is made, its making and its run waiting for their turn among threads."""
        from nnsight_mmflow.remote.turns import in_turn, turn_of  # here: what holds locks does not travel

        return in_turn(turn_of(self.model, self.remote), make)

    @property
    def apart(self) -> bool:
        """Whether blocks run in a process apart from the model's: on NDIF, with an ordinary key."""
        return self.remote not in (False, "local") and not self.trusted

    @property
    def remotely(self) -> dict[str, bool | str | Backend]:
        """What nnsight's trace and session take beside the rest: where they run. Made ready when it is asked for."""
        if not self.remote:
            return {}
        if self.remote == "local":
            from nnsight_mmflow.remote.ready import make_ready

            make_ready(self.remote)
            return {"remote": self.remote}
        return {"backend": self.backend_there()}

    def placed(self, given: dict[str, object]) -> dict[str, object]:
        """The keyword arguments of a trace, with where it runs; `backend`, `blocking` and `job_id` are the caller's."""
        if not self.remote or self.remote == "local":
            return {**given, **self.remotely}
        if "backend" in given:  # of the caller's own, such as nnsight's AsyncRemoteBackend
            from nnsight_mmflow.remote.ready import make_ready

            make_ready(self.remote)
            return given
        rest = dict(given)
        backend = self.backend_there(bool(rest.pop("blocking", True)), rest.pop("job_id", None))  # type: ignore[arg-type]
        return {**rest, "backend": backend}

    def backend_there(self, blocking: bool = True, job: str | None = None) -> Backend:
        """The nnsight backend for one request to the server, its bytes counted.

        Args:
            blocking: wait for the result.
            job: the id of one that was sent before, to fetch it.
        """
        from httpx import HTTPStatusError
        from nnsight.intervention.backends.remote import RemoteError

        from nnsight_mmflow._progress import say
        from nnsight_mmflow.remote.hidden_keys import hiding, without_keys
        from nnsight_mmflow.remote.ready import make_ready
        from nnsight_mmflow.remote.server_words import PART, meaning

        make_ready(self.remote)
        backend, traffic = self.model._remote_backend(self.remote, blocking, job, False), self.traffic
        serialize, finalize = backend._serialize, backend.finalize

        def sent(tracer: object) -> bytes:
            try:
                blob = serialize(tracer)
            except Exception as error:
                if not isinstance(error, TypeError) and type(error).__name__ != "PicklingError":
                    raise
                failed = str(error)
            else:
                failed = ""
            if failed:
                raise ServerError(
                    f"what this run uses cannot be sent: {failed}. A function of your own travels with what it names:"
                    " let it name functions and tensors (from the_module import the_function), not whole modules or"
                    " models."
                )
            if len(blob) > PART:
                say(f"{self.name}: a request of {len(blob)} bytes is sent; some servers refuse more than {PART}.")
            traffic.requests, traffic.up = traffic.requests + 1, traffic.up + len(blob)
            return blob

        def came(content: bytes) -> object:
            traffic.down += len(content)
            return finalize(content)

        note, post = backend.note, backend._post

        def noted(response: ResponseModel) -> bool:
            response.description = without_keys(response.description or "")
            return note(response)

        def posted(request: RequestModel, blob: bytes) -> ResponseModel:
            try:
                response = post(request, blob)
            except RemoteError as error:
                if "parsing the body" not in str(error):
                    raise
                said = f"{error} ({len(blob)} bytes were sent)"
                raise RemoteError(f"{said}: {meaning(said)}") from None
            response.description = without_keys(response.description or "")
            return response

        download = backend.download_result

        def downloaded(url: str | bytes | None) -> object:
            try:
                return download(url)
            except HTTPStatusError as error:  # its text holds the link, which opens the result to whoever has it
                if error.response.status_code not in EXPIRED:
                    raise
            raise RemoteError("the result's link has expired")

        backend._serialize, backend.finalize, backend.download_result = sent, came, downloaded
        backend.note, backend._post = noted, posted
        backend.request, backend.submit, backend.poll = map(hiding, (backend.request, backend.submit, backend.poll))
        return backend
