"""What a notebook shows first of each kind of result: a small table with units."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nnsight_mmflow.runs.scores import PERCENT

if TYPE_CHECKING:
    import pandas as pd

    from nnsight_mmflow.patterns.prune.kept_tokens import KeptTokensResult
    from nnsight_mmflow.runs.results import Result


def overview(result: Result) -> pd.DataFrame:
    """A few rows that say most; of a kind that is not known here the first rows of its table."""
    make = OVERVIEWS.get(result.kind)
    return result.table.head(6) if make is None else make(result)


def _frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _flow(result: Any) -> pd.DataFrame:
    return _frame(
        [
            {"window": int(window), "edge": edge, **_lowest(band, result.quantity.label)}
            for window in result.table["window"].unique()
            for edge, band in result.curves(int(window)).items()
        ]
    )


def _skip(result: Any) -> pd.DataFrame:
    return _frame([{"span": span, **_lowest(band, result.quantity.label)} for span, band in result.curves().items()])


def _lowest(band: Any, label: str) -> dict[str, Any]:
    mean, low, high = band
    at = int(mean.argmin())
    if label == PERCENT.label:
        interval, name = f"{low[at]:+.1f} to {high[at]:+.1f}", "change of probability (%)"
        return {"lowest at layer": at, name: f"{mean[at]:+.1f}", "95% interval": interval}
    return {"lowest at layer": at, label: f"{mean[at]:+.2f}", "95% interval": f"{low[at]:+.2f} to {high[at]:+.2f}"}


def _lens(result: Any) -> pd.DataFrame:
    from nnsight_mmflow.patterns.lens import FOLLOWED

    stream = result.table[result.table["site"] == "resid"].groupby("layer")[list(FOLLOWED)].mean()
    return _frame(
        [
            {
                "word": name.replace("_", ", "),
                "most probable after layer": int(stream[name].idxmax()),
                "probability (%)": f"{100 * stream[name].max():.1f}",
            }
            for name in FOLLOWED
            if stream[name].notna().any()
        ]
    )


def _trace(result: Any) -> pd.DataFrame:
    rows = []
    for site, means in result.map().items():
        for span, row in means.iterrows():
            if row.notna().any():
                at = row.idxmax()
                largest = {"largest effect at layer": int(at), "effect (difference of probabilities)": float(row[at])}
                rows.append({"site": site, "span": span, **largest})
    return _frame(rows)


def _attribution(result: Any) -> pd.DataFrame:
    unit = f" ({result.unit.strip()})" if result.unit else ""
    return result.top(8).rename(columns={"estimate": f"estimate{unit}", "exact": f"measured{unit}"})


def _contributions(result: Any) -> pd.DataFrame:
    whole = result.summed()
    share = whole.groupby(["layer", "prompt"])["share"].sum().groupby("layer").mean()
    name = f"share of {result.header['source']} in what {result.header['target']} takes (%)"
    return _frame([{"layer": int(layer), name: f"{100 * value:.1f}"} for layer, value in share.items()])


def _saliency(result: Any) -> pd.DataFrame:
    units = {"S_sys": "system", "S_img": "image", "S_ins": "instruction"}
    means = result.curves(normalise=False).reset_index()
    return means.rename(columns={name: f"{label} (per token)" for name, label in units.items()})


def _disruption(result: Any) -> pd.DataFrame:
    means = result.curves()
    lowest = means.loc[means.groupby("way", sort=False)["score_consistency"].idxmin()]
    names = {"layer": "most disturbed at layer", "label_kept": "answers kept (share)"}
    return lowest.rename(columns={**names, "score_consistency": "overlap of the top five (0 to 1)"})


def _overlap(result: Any) -> pd.DataFrame:
    means = result.table.groupby(["site", "layer"])["jaccard"].mean()
    return _frame(
        [
            {"silenced": site, "lowest at layer": int(means[site].idxmin()), "overlap (0 to 1)": means[site].min()}
            for site in dict.fromkeys(result.table["site"])
        ]
    )


def _prune(result: Any) -> pd.DataFrame:
    scores = result.scores()
    shares = [name for name in ("right", "low", "high", "agrees", "flops_share", "cache_share") if name in scores]
    shown = scores[["method", *shares, "image_tokens"]].copy()
    shown[shares] = shown[shares].map(lambda share: f"{100 * share:.1f}")
    units = {name: f"{name.replace('_share', '')} (%)" for name in shares}
    return shown.rename(columns={**units, "image_tokens": "image tokens per layer"})


def _edit_report(result: Any) -> pd.DataFrame:
    return result.overall().map(lambda share: f"{100 * share:.1f}").add_suffix(" (%)").reset_index()


def _edit(result: Any) -> pd.DataFrame:
    return result.table[["fact", "question", "target", "layer", "before", "after", "answered"]].head(12)


def _effect(result: Any) -> pd.DataFrame:
    named = result.table["span"].where(result.table["span"] == "source", "random, as many")
    means = result.table.groupby(["layer", named], sort=False)[["mass", "change_percent"]].mean()
    most = means.xs("source", level=1)["change_percent"].abs().nlargest(3).index
    return _frame(
        [
            {
                "layer": int(layer),
                "span": span,
                "attention (%)": f"{100 * row['mass']:.1f}",
                "change of probability (%)": f"{row['change_percent']:+.2f}",
            }
            for layer in sorted(most)
            for span, row in means.loc[layer].iterrows()
        ]
    )


def _attention(result: Any) -> pd.DataFrame:
    table = result.table.assign(sum=result.table["mass"] * result.table["n_targets"])
    sums = table.groupby(["layer", "source"], sort=False)[["sum", "n_targets"]].sum()
    shares = (100 * sums["sum"] / sums["n_targets"]).unstack()[list(dict.fromkeys(table["source"]))]
    sinks = {layer: len(result.sinks(layer)) for layer in result.layers}
    shown = shares.map(lambda share: f"{share:.1f}").add_suffix(" receives (%)").reset_index()
    return shown.assign(**{"attention sinks": shown["layer"].map(sinks)})


def _patches(result: Any) -> pd.DataFrame:
    column = result.quantity.column
    label = "change of probability (%)" if column == "change_percent" else result.quantity.label
    lowest = result.table.nsmallest(5, column)
    return _frame(
        [
            {
                "row": row["row"],
                "column": row["column"],
                "layers": f"{row['first_layer']} to {row['last_layer']}",
                "tokens": row["n_tokens"],
                label: f"{row[column]:+.2f}",
            }
            for _, row in lowest.iterrows()
        ]
    )


def _words(result: Any) -> pd.DataFrame:
    first = result.table[result.table["rank"] == 0]
    rows = []
    for layer, part in first.groupby("layer"):
        words = part["word"].value_counts()
        rows.append(
            {
                "after layer": int(layer),
                "most frequent word": words.index[0],
                "at patches": int(words.iloc[0]),
                "mean probability of the first word (%)": f"{100 * part['probability'].mean():.1f}",
            }
        )
    return _frame(rows)


def _kept(result: KeptTokensResult) -> pd.DataFrame:
    counts = result.counts
    first = [layer for layer, count in enumerate(counts) if not layer or count != counts[layer - 1]]
    ends = [*(layer - 1 for layer in first[1:]), len(counts) - 1]
    return _frame(
        [
            {
                "layers": f"{start} to {end}" if end > start else str(start),
                "image tokens": counts[start],
                "of the first": f"{counts[start] / max(1, counts[0]):.0%}",
            }
            for start, end in zip(first, ends, strict=True)
        ]
    )


def _sweep(result: Any) -> pd.DataFrame:
    means = result.means()
    largest = means.reindex(means["mean"].abs().sort_values(ascending=False).index).head(6)
    told = [
        {result.quantity.label: f"{row['mean']:+.3g}", "95% interval": f"{row['low']:+.3g} to {row['high']:+.3g}"}
        for row in largest.to_dict("records")
    ]
    return largest[result.axes].reset_index(drop=True).join(_frame(told)).assign(prompts=list(largest["prompts"]))


def _accuracy(result: Any) -> pd.DataFrame:
    scores = result.scores()
    told = scores[["kind", "n"]].copy()
    for prefix, name in (("", "right (%)"), ("clean_", "clean run right (%)")):
        told[name] = [f"{100 * share:.1f}" for share in scores[f"{prefix}accuracy"]]
        limits = zip(scores[f"{prefix}low"], scores[f"{prefix}high"], strict=True)
        told[f"{name.removesuffix(' right (%)').removesuffix('right (%)')} 95% Wilson interval".strip()] = [
            f"{100 * low:.1f} to {100 * high:.1f}" for low, high in limits
        ]
    told["as in the clean run (%)"] = [f"{100 * share:.1f}" for share in scores["agreement"]]
    return told


def _features(result: Any) -> pd.DataFrame:
    table = result.table
    shown = table.groupby(table["answer"].fillna("no answer"), sort=False).agg(
        prompts=("prompt", "count"), pictures=("picture", "nunique"), length=("norm", "mean")
    )
    shown = shown.sort_values("prompts", ascending=False).head(8).reset_index()
    return shown.rename(columns={"length": "mean length of a vector"})


def _probe(result: Any) -> pd.DataFrame:
    names = ["accuracy", "low", "high", "majority", "control", "selectivity"]
    told = result.table[["layer", *names]].copy()
    told[names] = told[names].map(lambda share: "-" if share != share else f"{100 * share:.1f}")
    return told.rename(columns={name: f"{name} (%)" for name in names})


OVERVIEWS: dict[str, Callable[[Any], pd.DataFrame]] = {
    "flow": _flow,
    "skip_flow": _skip,
    "lens": _lens,
    "causal_trace": _trace,
    "attribution": _attribution,
    "contributions": _contributions,
    "saliency": _saliency,
    "disruption": _disruption,
    "word_overlap": _overlap,
    "prune_report": _prune,
    "edit_report": _edit_report,
    "edit": _edit,
    "attention_and_effect": _effect,
    "attention": _attention,
    "kept_tokens": _kept,
    "knockout_by_patch": _patches,
    "lens_by_patch": _words,
    "sweep": _sweep,
    "accuracy": _accuracy,
    "features": _features,
    "probe": _probe,
}
