"""The mean loss by image code, in the rows and columns of the image."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from evalsvc.client.reader import ServiceReader
from evalsvc.errors import InvalidData, UnknownName
from evalsvc.spec.documents.results import Artifact
from evalsvc.spec.names import checkpoint_name
from evalsvc.web.charts import map_chart
from evalsvc.web.panel import Commands, Panel, PanelQuery, Table

MOST_CELLS = 1 << 14
"""Most image codes of a loss profile."""

Side = Annotated[int, Field(ge=1, le=MOST_CELLS)]
EvaluationId = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Cells(BaseModel):
    """The image codes that have a target: their places in the image, counted row by row, and their losses."""

    start: Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_CELLS)]
    loss: Annotated[list[FiniteFloat], Field(max_length=MOST_CELLS)]


class LossProfile(BaseModel):
    """What a map needs of the content of an artifact `loss_profile`; `grid` is rows and columns."""

    grid: tuple[Side, Side]
    image_cell: _Cells

    @property
    def losses(self) -> dict[tuple[int, int], float]:
        """Mean losses in nats/token by row and column, without image codes that have no target."""
        rows, columns = self.grid
        places = zip(self.image_cell.start, self.image_cell.loss, strict=False)
        return {divmod(place, columns): loss for place, loss in places if place < min(rows * columns, MOST_CELLS)}


class LossMapQuery(PanelQuery):
    name: ClassVar = "loss_map"

    evaluation: EvaluationId
    task: Annotated[str, Field(min_length=1, max_length=128)]

    def panel(self, source: ServiceReader) -> Panel:
        profiles = source.evaluation_artifacts(self.evaluation, "loss_profile")
        artifact = next((each for each in profiles if each.task == self.task and _has_map(each)), None)
        if artifact is None:
            raise UnknownName(f"the task {self.task!r} of evaluation {self.evaluation} has no loss by image code")
        try:
            profile = LossProfile.model_validate_json(source.artifact_content(artifact.id).content)
        except ValidationError as error:
            reason = error.errors(include_url=False)[0]["msg"]
            raise InvalidData(f"artifact {artifact.id} is no loss profile: {reason}; evaluate again") from None
        (rows, columns), losses = profile.grid, profile.losses
        height, width = (max((place[axis] for place in losses), default=-1) + 1 for axis in (0, 1))
        cells = [[losses.get((row, column)) for column in range(width)] for row in range(height)]
        name = checkpoint_name(artifact.run, artifact.step, artifact.variant)
        return Panel(
            query=self,
            title=f"Loss by image code: {name}, {self.task}",
            spec=map_chart(losses, rows, columns),
            table=Table(["row", *map(str, range(width))], [[row, *of_row] for row, of_row in enumerate(cells)]),
            commands=Commands(cli=f"evalsvc artifacts get {artifact.id}", rest=f"/v1/artifacts/{artifact.id}"),
            notes=["blue-grey cells have no target"] if len(losses) < rows * columns else [],
        )


def loss_maps(artifacts: Iterable[Artifact]) -> list[LossMapQuery]:
    return [LossMapQuery(evaluation=each.evaluation, task=each.task) for each in artifacts if _has_map(each)]


def _has_map(artifact: Artifact) -> bool:
    groups = (artifact.details or {}).get("groups")
    is_kept = artifact.kind == "loss_profile" and artifact.pruned_at is None
    return is_kept and isinstance(groups, list) and "image_cell" in groups
