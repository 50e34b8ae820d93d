"""Documents as text: whatever a document has is shown."""

import pytest

from evalsvc.cli.document_text import print_document
from evalsvc.spec import documents
from evalsvc.spec.documents import Document
from evalsvc.spec.documents.document import example_of, json_name
from evalsvc.spec.documents.reading import read

KINDS = [kind for kind in vars(documents).values() if isinstance(kind, type) and kind is not Document]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_a_document_is_shown(kind: type[Document], capsys: pytest.CaptureFixture[str]) -> None:
    document = read(kind, example_of(kind))
    print_document(document)
    lines = capsys.readouterr().out.splitlines()
    assert {json_name(name) for name in vars(document)} <= {line.partition(":")[0] for line in lines}
