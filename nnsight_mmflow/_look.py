"""How a plot is to look: what every `plot` takes, checked against the names of what it draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Real
from typing import TYPE_CHECKING, TypeAlias

from nnsight_mmflow._errors import MMFlowError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Figure

    Places: TypeAlias = Axes | Sequence[Axes] | None
    Rows: TypeAlias = str | Sequence[str] | None
    Size: TypeAlias = tuple[float, float] | None
    Colors: TypeAlias = str | Mapping[str, str] | Sequence[str] | None
    Labels: TypeAlias = Mapping[str, str] | Sequence[str] | None


@dataclass(frozen=True)
class Look:
    """What a caller asks of a plot; None leaves it to the plot.

    Attributes:
        ax: the axes to draw on: one for the whole plot, which is divided where the plot has several panels, or one for
            each panel.
        rows: the names of what is drawn, in their order.
        figsize: (width, height) in inches.
        colors: by name, or one for each row that is drawn; of a heat map the name of a colour map.
        labels: by name, or one for each row that is drawn.
        word: what `rows` is called in this plot.
    """

    ax: Places = None
    rows: Rows = None
    figsize: Size = None
    colors: Colors = None
    labels: Labels = None
    word: str = "rows"

    def __post_init__(self) -> None:
        if self.figsize is not None:
            sides = list(self.figsize) if isinstance(self.figsize, Iterable) else []
            if len(sides) != 2 or not all(isinstance(one, Real) and 0 < float(one) < 200 for one in sides):
                raise MMFlowError(f"figsize is (width, height) in inches, such as (3.3, 2.4), not {self.figsize!r}.")
            if self.ax is not None:
                raise MMFlowError("figsize= is of a figure made here; with ax= it is your figure that has a size.")

    def chosen(self, names: Sequence[str]) -> list[str]:
        """Which of the names are drawn.

        Raises:
            MMFlowError: one that is not there; the message has those that are.
        """
        if self.rows is None:
            return list(names)
        asked = [self.rows] if isinstance(self.rows, str) or not isinstance(self.rows, Iterable) else list(self.rows)
        _check_known(self.word, asked, names)
        if not asked or len(set(asked)) < len(asked):
            raise MMFlowError(f"{self.word}={self.rows!r}: name each once, at least one of {', '.join(names)}.")
        return asked

    def label_of(self, names: Sequence[str], own: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
        """What each of the drawn names is called: as asked, else by its own name here.

        Args:
            names: of what is drawn.
            own: what each is called unless asked otherwise.
            more: names that may have a label beside them.
        """
        return {
            **{name: str(own.get(name, name)) for name in names},
            **self._by_name("labels", self.labels, names, more),
        }

    def color_of(self, names: Sequence[str], own: Mapping[str, str], more: Sequence[str] = ()) -> dict[str, str]:
        """The colour of each of the drawn names; arguments as in `label_of`.

        Raises:
            MMFlowError: a name that is not drawn, or what is no colour.
        """
        if isinstance(self.colors, str):
            raise MMFlowError(
                f"colors={self.colors!r}: this plot has a colour for each of {', '.join(names)}:"
                f" colors={{{names[0]!r}: {self.colors!r}}}."
            )
        given = self._by_name("colors", self.colors, names, more)
        from matplotlib.colors import is_color_like

        wrong = {name: color for name, color in given.items() if not is_color_like(color)}
        if wrong:
            raise MMFlowError(f"colors: matplotlib knows no such colours: {wrong}. 'tab:red' and '#D55E00' are some.")
        return {**own, **given}

    def color_map(self, own: str) -> str:
        """The name of a heat map's colour map.

        Raises:
            MMFlowError: there is none of that name.
        """
        if self.colors is None:
            return own
        from matplotlib import colormaps

        if not isinstance(self.colors, str) or self.colors not in colormaps:
            near = get_close_matches(str(self.colors), list(colormaps), 3) or ["viridis", "magma", "gray"]
            raise MMFlowError(
                f"colors={self.colors!r}: a heat map takes the name of a matplotlib colour map, such as"
                f" {', '.join(map(repr, near))}."
            )
        return self.colors

    def _by_name(
        self, what: str, given: Mapping[str, str] | Sequence[str] | None, names: Sequence[str], more: Sequence[str]
    ) -> dict[str, str]:
        if given is None:
            return {}
        if isinstance(given, Mapping):
            _check_known(what, list(given), [*names, *more])
            found = {str(name): value for name, value in given.items()}
        else:
            listed = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
            if len(listed) != len(names):
                raise MMFlowError(
                    f"{what}={given!r}: give one for each of the {len(names)} drawn, in their order"
                    f" ({', '.join(names)}), or by name: {what}={{{names[0]!r}: ...}}."
                )
            found = dict(zip(names, listed, strict=True))
        wrong = [value for value in found.values() if what == "labels" and not isinstance(value, str)]
        if wrong:
            raise MMFlowError(f"labels are texts, but {wrong[0]!r} came.")
        return found


def _check_known(what: str, asked: Sequence[object], names: Sequence[str]) -> None:
    unknown = [one for one in asked if one not in names]
    if unknown:
        told = ", ".join(dict.fromkeys(names))
        raise MMFlowError(f"{what}: {', '.join(map(repr, unknown))} is not drawn here; there are {told}.")


PLAIN = Look()
