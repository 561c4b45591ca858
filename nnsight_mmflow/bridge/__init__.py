"""TransformerLens over the same weights: its functions run with the image, and by span."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._later import group

if TYPE_CHECKING:
    from nnsight_mmflow.bridge.bound import BoundBridge as BoundBridge
    from nnsight_mmflow.bridge.by_span import cache_by_span as cache_by_span
    from nnsight_mmflow.bridge.patching import attribution_by_span as attribution_by_span
    from nnsight_mmflow.bridge.patching import patch_by_span as patch_by_span
    from nnsight_mmflow.bridge.span_cache import SpanCache as SpanCache

_WHERE = {
    "BoundBridge": "bridge.bound",
    "SpanCache": "bridge.span_cache",
    "cache_by_span": "bridge.by_span",
    "patch_by_span": "bridge.patching",
    "attribution_by_span": "bridge.patching",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = group(__name__, _WHERE)
