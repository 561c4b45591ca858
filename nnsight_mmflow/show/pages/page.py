"""A page: one HTML document that holds its own script, style and numbers, and fetches nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
