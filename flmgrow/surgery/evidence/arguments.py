"""Arguments: a result must say what model it is; a wrong epsilon hides in rounding."""

from collections.abc import Mapping
from dataclasses import asdict

from flmgrow.formats.checkpoint import Checkpoint
from flmgrow.formats.history.manifest import masks_of
from flmgrow.formats.megatron.rank_contents import rank_content
from flmgrow.formats.writing import has_ranks
from flmgrow.model.masks import Dimension, Mask
from flmgrow.operators.growth import Growth
from flmgrow.surgery.evidence.check import Check
from flmgrow.text import Found, Text, Wanted, unlike

Masks = Mapping[Dimension, Mask]


def check_model(
    source: Checkpoint,
    result: Checkpoint,
    growth: Growth,
    masks: Masks | None = None,
    *,
    declared: bool = True,
) -> Check:
    """Compare what the result says of itself with what the growth leads to.

    That is its arguments, its iteration and its masks: ``masks``, or those of the growth. Where
    nothing ``declared`` that the result came from the source, either may have lost its iteration on
    a way through another format.
    """
    wanted, found = asdict(growth.new), asdict(result.config)
    wrong = [
        unlike(name, found[name], wanted[name]) for name in wanted if wanted[name] != found[name]
    ]
    iterations = {source.iteration, result.iteration} - (set() if declared else {None})
    if has_ranks(result.format) and len(iterations) > 1:
        wrong.append(unlike("iteration", result.iteration, source.iteration))
    known, due = (
        {str(name): mask.to_json() for name, mask in each.items()}
        for each in (masks_of(result), growth.masks if masks is None else masks)
    )
    wrong += [
        unlike(f"{name} mask", known.get(name), due.get(name))
        for name in {**due, **known}
        if known.get(name) != due.get(name)
    ]
    return Check(
        "model", not wrong, Text("; ").join(wrong) or "the arguments say what the growth leads to"
    )


def check_iteration(checkpoint: Checkpoint) -> list[Check]:
    """Find files that were saved at another iteration than that of their folder; [] if none."""
    wanted = checkpoint.iteration
    if wanted is None or not has_ranks(checkpoint.format):
        return []
    for rank in checkpoint.layout.ranks:
        found = rank_content(checkpoint, rank).get("iteration")
        if isinstance(found, int) and found != wanted:
            where = f"rank {rank[0]} of stage {rank[1]}"
            holds = f"{checkpoint.folder.name}: {where} holds iteration "
            detail = Text(holds, Found(found), Wanted(wanted))
            return [Check(f"iteration of {checkpoint.name}", False, detail)]
    return []
