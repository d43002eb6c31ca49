"""`fusion_report.json`: per layer and concept what the fusion kept, and how the whole model does held out."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mixshow.fusion.fusion import Fusion
from mixshow.fusion.heldout import HeldOutScores
from mixshow.fusion.layers import Stage, layers_of
from mixshow.fusion.members import Member
from mixshow.fusion.solvers import Outcome
from mixshow.models import Base

REPORT_FILE = "fusion_report.json"
_HIGH_ERROR = 0.75


def report(
    base: Base,
    members: Sequence[Member],
    fusion: Fusion,
    *,
    held_out: Mapping[str, HeldOutScores],
    seconds: Mapping[str, float],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as plain values.

    Args:
        held_out: scores of the `fused` model, and as `solved` before it was refined; empty where not taken.
        seconds: by what they were spent on.
        options: the resolved options.
    """
    stages = {layer.path: layer.stage for layer in layers_of(base).values()}
    return {
        "base": base.source,
        "topology": base.topology.fingerprint(),
        "concepts": [
            {
                "tokens": list(member.concept.embeddings),
                "trigger": member.concept.trigger or None,
                "source": member.concept.source,
                "weight": member.weight,
                "alpha": member.alpha,
                "text_encoder": member.text_encoder,
                "unet": member.unet,
            }
            for member in members
        ],
        "summary": {
            stage.value: _summary([o for o in fusion.outcomes.values() if stages[o.name] is stage], members)
            for stage in Stage
        },
        "held_out": held_out["fused"].to_json() if held_out else None,
        "held_out_solved": held_out["solved"].to_json() if held_out else None,
        "refining": dict(fusion.refining) or None,
        "advice": _advice(list(fusion.outcomes.values()), held_out["fused"] if held_out else None),
        "seconds": {what: round(value, 3) for what, value in seconds.items()},
        "options": dict(options),
        "layers": {
            outcome.name: {
                "stage": stages[outcome.name].value,
                **outcome.to_json(),
                "residuals": {
                    member.concept.text: {"before": before, "after": after}
                    for member, before, after in zip(members, outcome.before, outcome.after)
                },
            }
            for outcome in fusion.outcomes.values()
        },
    }


def _advice(outcomes: Sequence[Outcome], held_out: HeldOutScores | None) -> list[str]:
    """Each piece of advice once, with the number of layers it is for; then what is for single concepts."""
    counts = Counter(outcome.advice for outcome in outcomes if outcome.advice)
    high = {} if held_out is None else {name: e for name, e in held_out.errors.items() if e > _HIGH_ERROR}
    return [
        *(f"{count} of {len(outcomes)} layers: {text}" for text, count in counts.most_common()),
        *(
            f"{name}: held-out error {error:.2f}, nearer to the base than to its own model: give it more weight, "
            "refine it with refine.method=distill and more refine.steps, or train it with smaller network rates"
            for name, error in high.items()
        ),
    ]


def _summary(outcomes: Sequence[Outcome], members: Sequence[Member]) -> dict[str, Any]:
    """Over the layers of a stage: how much of each concept's change on its own inputs is lost (0: nothing)."""
    if not outcomes:
        return {"layers": 0}
    lost = {}
    for i, member in enumerate(members):
        shares = [o.after[i] / o.before[i] for o in outcomes if o.before[i] > 0]
        lost[member.concept.text] = statistics.median(shares) if shares else None
    statuses = [o.status.name.lower() for o in outcomes]
    return {
        "layers": len(outcomes),
        "status": {name: statuses.count(name) for name in sorted(set(statuses))},
        "median_residual_share": lost,
        "worst_condition": max(o.condition for o in outcomes),
    }
