"""Pretends in the server's processes that there is one GPU of 8 GB; weights stay on the CPU. Test equipment.

A .pth file in the server's environment imports it at every start of Python there; NDIF's own files stay as they are.
Each change is made right after the module that it concerns is imported.
"""

import functools
import importlib.abc
import importlib.util
import os
import sys

SECONDS = 240.0  # on a busy machine imports take long: a runner gets 30 s otherwise


def after(name, change):
    """Calls `change` with the module of that name when it has been imported."""

    class Finder(importlib.abc.MetaPathFinder):
        busy = False

        def find_spec(self, wanted, path=None, target=None):
            if wanted != name or self.busy:
                return None
            self.busy = True
            try:
                spec = importlib.util.find_spec(wanted)
            finally:
                self.busy = False
            if spec is None:
                return None
            run = spec.loader.exec_module

            def exec_module(module):
                run(module)
                change(module)

            spec.loader.exec_module = exec_module
            return spec

    sys.meta_path.insert(0, Finder())


def one_gpu(cuda):
    class Properties:
        total_memory = 8 << 30
        name = "stand-in"

    cuda.get_device_properties = lambda *given, **named: Properties
    for name in ("set_device", "set_per_process_memory_fraction", "synchronize"):
        setattr(cuda, name, lambda *given, **named: None)  # one each: torch takes no function under two names


def on_the_cpu(base):
    real = base.HuggingFaceModel

    class OnTheCPU:
        @staticmethod
        def from_model_key(key, **named):
            if named.get("device") == 0:
                named["device"] = "cpu"
            model = real.from_model_key(key, **named)
            model._module.eval()
            return model

    base.HuggingFaceModel = OnTheCPU
    base.verify_device_placement = lambda *given, **named: None


def with_time(host):
    spawn, acquire = list(host.spawn.__defaults__), list(host.Pool.acquire.__defaults__)
    spawn[2] = acquire[0] = SECONDS
    host.spawn.__defaults__, host.Pool.acquire.__defaults__ = tuple(spawn), tuple(acquire)


def without_trust(remotable):
    """ndif 0.1.2 hands over an argument that nnsight 0.8.1 no longer has, and ndif 0.1.3 no longer hands over."""
    for name in ("describe_checkpoint", "max_tp_size"):
        real = getattr(remotable.Remotable, name).__func__

        @functools.wraps(real)
        def called(cls, *given, _real=real, trust_remote_code=None, **named):
            return _real(cls, *given, **named)

        setattr(remotable.Remotable, name, classmethod(called))


if os.environ.get("NDIF_STAND_IN_GPU"):
    after("torch.cuda", one_gpu)
    after("ndif.services.ray.deployments.modeling.base", on_the_cpu)
    after("ndif.services.ray.sandbox.host", with_time)
    after("nnsight.modeling.mixins.remotable", without_trust)
