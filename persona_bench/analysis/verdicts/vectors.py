"""The rules of the claims about the vectors themselves."""

import math
from collections.abc import Mapping

from persona_bench.analysis.finding import Finding
from persona_bench.analysis.verdicts.decision import Rule, Run, untestable
from persona_bench.definitions.claims import (
    COSINE_NOISE,
    Claim,
)


def _refusal_confound(run: Run, claim: Claim, trait: str) -> Finding:
    vectors = run.tables["vectors"]
    at_layer = vectors[(vectors["trait"] == trait) & (vectors["layer"] == run.layers.get(trait, math.nan))]
    if at_layer.empty:
        return untestable("no layer was chosen, neither with the vector nor by steering")
    row = at_layer.iloc[0]
    cosine = abs(float(row["refusal_cosine"]))
    n = int(row["n_positive"] + row["n_negative"])
    if math.isnan(cosine):
        return untestable("the refusal direction was not measured", n=n)
    verdict = "supported" if cosine <= claim.threshold else "contradicted"
    reason = f"absolute cosine {cosine:.2f} at layer {row['layer']:g}, limit {claim.threshold:g}"
    return Finding(verdict, reason, cosine, n=n, log=str(row["vector_id"]))


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
    signed = pairs["cosine"].astype(float) * pairs["other"].map(signs)
    least = COSINE_NOISE / math.sqrt(float(pairs["width"].iloc[0]))
    verdict = "supported" if (signed > least).all() else "contradicted" if (signed < -least).any() else "inconclusive"
    seen = ", ".join(f"{row['other']} {row['cosine']:.2f}" for _, row in pairs.iterrows())
    reason = f"cosines at layer {run.layers[trait]:g}: {seen}; beyond {least:.2f} counts"
    vectors = run.tables["vectors"].drop_duplicates("trait").set_index("trait")["vector_id"]
    behind = "; ".join(str(vectors[name]) for name in (trait, *pairs["other"]) if name in vectors.index)
    return Finding(verdict, reason, float(signed.mean()), n=len(pairs), log=behind)


VECTOR_RULES: Mapping[str, Rule] = {"L1-refusal-confound": _refusal_confound, "V1-cosines": _cosines}
