"""The rules of the claims about the vectors themselves."""

import math
from collections.abc import Mapping

from persona_bench.analysis.finding import Finding
from persona_bench.analysis.verdicts.decision import Rule, Run, untestable
from persona_bench.definitions.claims import (
    COSINE_NOISE,
    Claim,
)

_NO_INTERVAL = "no interval, as what the vector is made of is not known by question"


def _refusal_confound(run: Run, claim: Claim, trait: str) -> Finding:
    vectors = run.tables["vectors"]
    at_layer = vectors[(vectors["trait"] == trait) & (vectors["layer"] == run.layers.get(trait, math.nan))]
    if at_layer.empty:
        return untestable("no layer was chosen, neither with the vector nor by steering")
    row = at_layer.iloc[0]
    cosine, *ends = (float(row[f"refusal_cosine{end}"]) for end in ("", "_low", "_high"))
    n, log = int(row["n_positive"] + row["n_negative"]), str(row["vector_id"])
    if math.isnan(cosine):
        return untestable("the refusal direction was not measured", n=n)
    size, spans = abs(cosine), ends[0] < 0 < ends[1]
    low, high = 0.0 if spans else min(abs(ends[0]), abs(ends[1])), max(abs(ends[0]), abs(ends[1]))
    reason = f"absolute cosine {_told(size, low, high)} at layer {row['layer']:g}, limit {claim.threshold:g}"
    nearest, farthest = low, high
    if math.isnan(low):
        nearest, farthest, reason = size, size, f"{reason}; {_NO_INTERVAL}"
    verdict = "inconclusive"
    if farthest <= claim.threshold:
        verdict = "supported"
    elif nearest > claim.threshold:
        verdict = "contradicted"
    return Finding(verdict, reason, size, low, high, n, log=log)


def _told(cosine: float, low: float, high: float) -> str:
    return f"{cosine:.2f}" if math.isnan(low) else f"{cosine:.2f} [{low:.2f}, {high:.2f}]"


def _cosines(run: Run, claim: Claim, trait: str) -> Finding:
    """Every pair that the paper gives, at the layer chosen for this trait, by the sign of the paper's cosine."""
    if trait not in run.layers:
        return untestable("no layer was chosen, neither with the vector nor by steering")
    frame = run.samples.cosines
    here = frame[(frame["trait"] == trait) & (frame["layer"] == run.layers[trait])]
    signs = {
        other: math.copysign(1, value.value)
        for value in claim.reference
        for pair in [value.trait.split("-")]
        if trait in pair
        for other in pair
        if other != trait
    }
    pairs = here[here["other"].isin(list(signs))].sort_values("other")
    if pairs.empty:
        return untestable(f"the run has no vector of {', '.join(sorted(signs))} to compare with")
    sign = pairs["other"].map(signs)
    # Times a sign of -1 the lower end is the upper one.
    ends = pairs[["cosine", "cosine_low", "cosine_high"]].astype(float).mul(sign, axis=0)
    least = COSINE_NOISE / math.sqrt(float(pairs["width"].iloc[0]))
    nearest, farthest = ends.min(axis=1), ends.max(axis=1)
    verdict = (
        "supported" if (nearest > least).all() else "contradicted" if (farthest < -least).any() else "inconclusive"
    )
    seen = ", ".join(
        f"{row['other']} {_told(row['cosine'], row['cosine_low'], row['cosine_high'])}" for _, row in pairs.iterrows()
    )
    reason = f"cosines at layer {run.layers[trait]:g}: {seen}; beyond {least:.2f} counts"
    if ends.isna().any(axis=None):
        reason += f"; {_NO_INTERVAL}"
    vectors = run.tables["vectors"].drop_duplicates("trait")
    ids = dict(zip(vectors["trait"], vectors["vector_id"].astype(str), strict=True))
    behind = "; ".join(ids[name] for name in (trait, *pairs["other"]) if name in ids)
    # By place, as rows of a table may share their labels.
    place = int(ends["cosine"].to_numpy().argmin())
    found, low, high = (float(part.to_numpy()[place]) for part in (ends["cosine"], nearest, farthest))
    if ends.isna().to_numpy()[place].any():
        low = high = math.nan
    n = int(vectors.loc[vectors["trait"] == trait, ["n_positive", "n_negative"]].to_numpy().sum())
    return Finding(verdict, reason, found, low, high, n, log=behind)


VECTOR_RULES: Mapping[str, Rule] = {"L1-refusal-confound": _refusal_confound, "V1-cosines": _cosines}
