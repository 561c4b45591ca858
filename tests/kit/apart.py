"""NDIF's split, emulated in this process: what a block reads is a copy, and the copy is written back."""

import pickle

import pytest


def across(value):
    """A value as it comes out of another process."""
    return pickle.loads(pickle.dumps(value))


@pytest.fixture
def split(monkeypatch):
    """While it is on, blocks run as NDIF runs ordinary keys'; `apart` makes a graph that knows."""
    from nnsight.intervention.interleaver import Mediator

    whole = Mediator.handle

    def handle(self, provider, value):
        pending = self.pending
        if pending is None or pending.provider != provider:
            return whole(self, provider, value)
        return across(whole(self, provider, across(value)))

    monkeypatch.setattr(Mediator, "handle", handle)


def apart(graph):
    """The graph of an ordinary key, whose traces run here nonetheless."""
    return graph.at("emulated")
