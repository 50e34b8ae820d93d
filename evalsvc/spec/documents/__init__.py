"""The JSON documents of the REST interface, one type each.

The OpenAPI schema with its examples, the store's answers, the client's return values and the terminal's output follow
from these types. The types need no package outside the standard library.
"""

from evalsvc.spec.documents.document import Document as Document
from evalsvc.spec.documents.runs import Runs as Runs
from evalsvc.spec.documents.runs import RunSummary as RunSummary
