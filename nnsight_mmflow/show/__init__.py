"""Pictures, figures and pages of what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnsight_mmflow._later import group

if TYPE_CHECKING:
    from nnsight_mmflow.show.attention_blocks import attention as attention
    from nnsight_mmflow.show.explorer import explore as explore
    from nnsight_mmflow.show.heat_on_image import on_image as on_image
    from nnsight_mmflow.show.token_colors import tokens as tokens

_WHERE = {
    "explore": "show.explorer",
    "on_image": "show.heat_on_image",
    "tokens": "show.token_colors",
    "attention": "show.attention_blocks",
}

__all__ = sorted(_WHERE)
__getattr__, __dir__ = group(__name__, _WHERE)
