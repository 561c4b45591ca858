"""Interactive pictures: each one self-contained HTML document, with no request to any other address."""

from __future__ import annotations
