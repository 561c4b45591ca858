"""What a type checker makes of experiments: read by mypy in test_quality.py, never run.

A line that should be refused has `type: ignore`, which mypy reports where it is not needed.
"""

from typing import assert_type

import nnsight_mmflow as mmf


def results(graph: mmf.Graph, prompts: list[mmf.Prompt], pairs: list[mmf.corruption.Corruption]) -> None:
    assert_type(mmf.flow(graph, prompts, ["image->last"], window=3), mmf.results.FlowResult)
    assert_type(mmf.flow(graph, prompts, blocking=True), mmf.results.FlowResult)
    assert_type(mmf.causal_trace(graph, prompts, pairs), mmf.results.CausalTraceResult)
    assert_type(mmf.attention(graph, prompts[0]), mmf.results.AttentionResult)
    mmf.flow(graph, prompts).plot()


def jobs(graph: mmf.Graph, prompts: list[mmf.Prompt], pairs: list[mmf.corruption.Corruption]) -> None:
    assert_type(mmf.flow(graph, prompts, folder="here", blocking=False), mmf.Job[mmf.results.FlowResult])
    assert_type(mmf.causal_trace(graph, prompts, pairs, blocking=False).result(), mmf.results.CausalTraceResult)
    mmf.flow(graph, prompts, blocking=False).plot()  # type: ignore[attr-defined]


def refused(graph: mmf.Graph, prompts: list[mmf.Prompt], pairs: list[mmf.corruption.Corruption]) -> None:
    mmf.flow(graph, prompts, windw=3)  # type: ignore[call-overload]
    mmf.flow(graph, prompts, window="three")  # type: ignore[arg-type]
    mmf.flow(prompts)  # type: ignore[call-overload]
    mmf.causal_trace(graph, prompts, pairs, site=["mlp"])  # type: ignore[call-overload]
    mmf.causal_trace(graph, prompts, pairs).result()  # type: ignore[attr-defined]
