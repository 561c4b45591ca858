"""Ray without processes, for tests of what the crew does when workers fail."""

from types import SimpleNamespace

from nnsight_mmflow.workers.crew import Worker


class NoProcess:
    """Ray's surface as the crew uses it, all in this process; `dies` says which calls of which worker are its last."""

    class exceptions:  # noqa: N801 - as Ray calls it
        class RayError(Exception):
            pass

        class RayTaskError(RayError):
            pass

    def __init__(self, worker=Worker, dies=lambda call, given: False, gpus=0):
        self.made, self.killed, self.told = [], 0, []
        self.worker, self.dies, self.gpus = worker, dies, gpus

    def remote(self, _):
        return self

    def options(self, **needs):
        self.needs = needs
        return SimpleNamespace(remote=self._make)

    def _make(self):
        worker = self.worker()
        self.made.append(worker)

        def call(name):
            def later(*given):
                return lambda: (
                    (_ for _ in ()).throw(self.exceptions.RayError("gone"))
                    if self.dies(name, given)
                    else getattr(worker, name)(*given)
                )

            return SimpleNamespace(remote=later)

        return SimpleNamespace(load=call("load"), do=call("do"))

    def shutdown(self):
        pass

    def wait(self, calls, num_returns, timeout):
        return calls[-1:], calls[:-1]

    def get(self, call):
        found = call()
        return found() if callable(found) else found

    def kill(self, worker):
        self.killed += 1

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2, "GPU": self.gpus}}]
