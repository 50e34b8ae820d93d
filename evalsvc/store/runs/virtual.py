"""Resolve the expressions of virtual checkpoints to the stored checkpoints that they name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from evalsvc.checkpoints.expression import (
    MAX_CHECKPOINTS,
    Base,
    Expression,
    File,
    Leaf,
    Step,
    Steps,
    Sum,
    canonical,
    default_variant,
    leaves,
    parse_expression,
    replaced,
    require_parts,
    written,
)
from evalsvc.errors import InvalidLayout, InvalidRequest, UnknownName, first_few
from evalsvc.families.reading import require_one_model
from evalsvc.store.lookup import find_run, find_step, get_or_create_run, require_current_parents, step_of
from evalsvc.store.runs.base import base_of
from evalsvc.store.runs.posting import Submission, submit
from evalsvc.store.tables import Checkpoint, checkpoint_parents

NAMED = 8
"""The most steps that a message names."""


@dataclass(frozen=True)
class Resolved:
    """An expression over steps only, and the distinct current checkpoints that it names, in canonical order. The bases
    of adapters follow."""

    expression: Expression
    parents: Sequence[Checkpoint]


def resolve_expression(session: Session, text: str) -> Resolved:
    # The canonical form decides which run `base` refers to, so that the typed order of an average has no effect.
    expression = parse_expression(canonical(parse_expression(text)))
    if isinstance(expression, Leaf):
        raise InvalidRequest(f"{text} is a checkpoint and no expression; combine checkpoints with avg, lerp or graft")
    for part in written(expression):
        if isinstance(part, Sum):
            raise InvalidRequest(
                f"{canonical(part)} is inside the expression; post each adapter as a checkpoint, and combine them as "
                "RUN@STEP"
            )
    first = next((part for part in written(expression) if isinstance(part, Step | Steps)), None)
    parents: dict[Leaf | Sum, Checkpoint] = {}

    def enter(checkpoint: Checkpoint) -> Expression:
        require_current_parents(checkpoint)
        if checkpoint.images:
            raise InvalidRequest(f"{step_of(checkpoint)} is images, which have no weights; name checkpoints of a model")
        own = [] if checkpoint.is_virtual else [checkpoint]
        parents.update({step_of(parent): parent for parent in (*own, *checkpoint.parents)})
        if len(parents) > MAX_CHECKPOINTS:
            raise InvalidRequest(
                f"the expression names more than {MAX_CHECKPOINTS} checkpoints; name fewer checkpoints"
            )
        return parse_expression(checkpoint.uri) if checkpoint.is_virtual else step_of(checkpoint)

    def of_leaf(leaf: Leaf) -> Expression:
        return enter(_find_leaf(session, leaf, first))

    def of_range(steps: Steps) -> list[Expression]:
        return [enter(checkpoint) for checkpoint in _find_steps(session, steps)]

    resolved = parse_expression(canonical(replaced(expression, of_leaf, of_range)))
    return Resolved(resolved, [parents[leaf] for leaf in dict.fromkeys((*leaves(resolved), *parents))])


def base_of_adapter(session: Session, run: str, variant: str, on: Sum, base: Submission | None) -> Checkpoint:
    """Return the checkpoint that an adapter is posted on. If the adapter names the files of its base, these become
    `base`, step 0 of the run."""
    parent = base_of(session, get_or_create_run(session, run), variant)
    if isinstance(on.first, Step):
        parent = find_step(session, find_run(session, on.first.run), on.first.step, on.first.variant)
    elif base is not None and (parent is None or parent.path != base.path):
        parent = submit(session, base, []).checkpoint
    if parent is None:
        raise InvalidRequest(
            f"{on.adapter} is a LoRA adapter that names no folder of its base that the service may read, and run "
            f"{run!r} has no base; post the base as step 0 of the run: evalsvc submit {run} 0 FOLDER"
        )
    if parent.images:
        raise InvalidRequest(f"{step_of(parent)} is images, which have no weights; name the weights of the base")
    if parent.parents:
        raise InvalidRequest(
            f"{step_of(parent)} is computed from other checkpoints; add {on.adapter} to a checkpoint with files"
        )
    return parent


def has_files(session: Session, run: str, variant: str | None = None) -> bool:
    """Tell whether a run has checkpoints (of a variant) with files of their own. Return False for an unknown run."""
    query = exists().where(
        Checkpoint.run.has(name=run),
        Checkpoint.replaced_at.is_(None),
        or_(Checkpoint.size > 0, Checkpoint.id.not_in(select(checkpoint_parents.c.checkpoint_id))),
    )
    return bool(session.scalar(select(query if variant is None else query.where(Checkpoint.variant == variant))))


def virtual_variant(session: Session, run: str, variant: str | None, resolved: Resolved) -> str:
    """Return the variant of a virtual checkpoint, which never shares a series with trained checkpoints."""
    variant = variant or (default_variant(resolved.expression) if has_files(session, run) else "raw")
    if has_files(session, run, variant):
        raise InvalidRequest(
            f"variant {variant!r} of run {run!r} has trained checkpoints, whose values would be in one series with "
            "those of the virtual checkpoint; name another variant, or leave variant out"
        )
    return variant


def require_combinable(resolved: Resolved) -> None:
    """Check an expression as far as possible without the files: the parents have one model, which has the parts that
    the expression names. A worker checks the rest."""
    models = {
        str(step_of(parent)): {key: value for key, value in (parent.model or {}).items() if key != "precision"}
        for parent in resolved.parents
    }
    require_one_model(models)
    fields = next(iter(models.values()))
    if {"n_layers", "weight_tying"} <= fields.keys():
        require_parts(resolved.expression, fields["n_layers"], fields["weight_tying"])


def common_layout(parents: Sequence[Checkpoint], given: Mapping[str, object] | None) -> Mapping[str, object] | None:
    """Return the layout of all parents. A given layout also applies to parents that were posted without a layout."""
    wanted = given or parents[0].layout
    other = next((parent for parent in parents if parent.layout != wanted and (parent.layout or not given)), None)
    if other is None:
        return wanted
    keys = sorted({*(wanted or {}), *(other.layout or {})})
    differing = [key for key in keys if (wanted or {}).get(key) != (other.layout or {}).get(key)]
    expected = "the given layout" if given else f"the layout of {step_of(parents[0])}"
    raise InvalidLayout(
        f"the layout of {step_of(other)} differs from {expected} in {', '.join(differing)}; combine only checkpoints "
        "with the same layout"
    )


def _find_leaf(session: Session, leaf: Leaf, first: Step | Steps | None) -> Checkpoint:
    if isinstance(leaf, Step):
        return find_step(session, find_run(session, leaf.run), leaf.step, leaf.variant)
    if isinstance(leaf, File):
        raise InvalidRequest(
            f"{leaf} is no checkpoint of the service; write RUN@STEP, RUN@STEP:VARIANT or base; post a file before you "
            "name its checkpoint, or evaluate files with `evalsvc run`"
        )
    assert isinstance(leaf, Base)
    if first is None:
        raise InvalidRequest(
            "the expression has base and names no run; name a checkpoint of the run in the expression too, as RUN@STEP"
        )
    base = base_of(session, find_run(session, first.run), first.variant)
    if base is None:
        raise UnknownName(
            f"run {first.run!r} has no base; post step 0 of the run, or name a base: PUT /v1/runs/{first.run}/base"
        )
    return base


def _find_steps(session: Session, steps: Steps) -> Sequence[Checkpoint]:
    run = find_run(session, steps.run)
    current = select(Checkpoint).filter_by(run_id=run.id, variant=steps.variant, replaced_at=None)
    inside = current.where(Checkpoint.step >= steps.first, Checkpoint.step <= steps.last).order_by(Checkpoint.step)
    if steps.stride is not None:
        inside = inside.where((Checkpoint.step - steps.first) % steps.stride == 0)
    by_step = {checkpoint.step: checkpoint for checkpoint in session.scalars(inside.limit(MAX_CHECKPOINTS + 1))}
    if not by_step:
        posted = session.scalars(current.with_only_columns(Checkpoint.step).order_by(Checkpoint.step)).all()
        hint = f"variant {steps.variant!r} has no checkpoint"
        if posted:
            hint = f"name steps of variant {steps.variant!r}: {first_few(posted, NAMED)}"
        raise UnknownName(f"run {run.name!r} has no checkpoint in {steps}; {hint}")
    count = len(by_step) if steps.stride is None else (steps.last - steps.first) // steps.stride + 1
    if count > MAX_CHECKPOINTS:
        raise InvalidRequest(f"{steps} has more than {MAX_CHECKPOINTS} checkpoints; give a larger stride")
    wanted = list(by_step) if steps.stride is None else range(steps.first, steps.last + 1, steps.stride)
    if missing := [step for step in wanted if step not in by_step]:
        raise UnknownName(
            f"run {run.name!r} has no checkpoint at {first_few(missing, NAMED)} of {steps}, but at "
            f"{first_few(list(by_step), NAMED)}; leave the stride out to take all checkpoints in the range"
        )
    return [by_step[step] for step in wanted]
