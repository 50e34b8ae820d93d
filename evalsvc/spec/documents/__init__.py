"""The JSON documents of the REST interface, one type each.

The OpenAPI schema with its examples, the store's answers, the client's return values and the terminal's output follow
from these types. The types need no package outside the standard library.
"""

from evalsvc.spec.documents.comparisons import Comparison as Comparison
from evalsvc.spec.documents.comparisons import DifferenceCurve as DifferenceCurve
from evalsvc.spec.documents.comparisons import MetricDifference as MetricDifference
from evalsvc.spec.documents.comparisons import RunComparison as RunComparison
from evalsvc.spec.documents.document import Document as Document
from evalsvc.spec.documents.results import Artifact as Artifact
from evalsvc.spec.documents.results import CheckpointResult as CheckpointResult
from evalsvc.spec.documents.results import Error as Error
from evalsvc.spec.documents.results import EvaluationSummary as EvaluationSummary
from evalsvc.spec.documents.results import Metric as Metric
from evalsvc.spec.documents.results import ResultCheckpoint as ResultCheckpoint
from evalsvc.spec.documents.results import ResultDocument as ResultDocument
from evalsvc.spec.documents.results import ResultFile as ResultFile
from evalsvc.spec.documents.results import ResultSuite as ResultSuite
from evalsvc.spec.documents.results import StoredCheckpoint as StoredCheckpoint
from evalsvc.spec.documents.results import TaskMetric as TaskMetric
from evalsvc.spec.documents.results import TaskWarning as TaskWarning
from evalsvc.spec.documents.runs import Runs as Runs
from evalsvc.spec.documents.runs import RunSummary as RunSummary
