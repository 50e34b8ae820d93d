"""The pages' modules as one classic script."""

import re
from pathlib import Path

import pytest

from evalsvc.web import classic_script
from evalsvc.web.page import STATIC


def test_every_module_is_in_the_script_after_those_that_it_imports() -> None:
    script = classic_script.classic_script()
    names = re.findall(r'^modules\["([a-z_]+\.js)"\] = ', script, re.MULTILINE)
    assert sorted(names) == sorted(path.name for path in STATIC.glob("*.js"))
    assert names[-1] == classic_script.FIRST
    for place, name in enumerate(names):
        imported = re.findall(r'from "\./([a-z_]+\.js)"', (STATIC / name).read_text())
        assert set(imported) <= set(names[:place])


def test_no_import_and_no_export_is_left() -> None:
    assert re.findall(r"^(?:import|export)\b.*", classic_script.classic_script(), re.MULTILINE) == []


def test_what_a_module_exports_is_there_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "main.js").write_text('import { one as first, two } from "./a.js";\nfirst(two);\n')
    (tmp_path / "a.js").write_text("export const two = 2;\n\nexport async function one() {}\n\nfunction hidden() {}\n")
    monkeypatch.setattr(classic_script, "STATIC", tmp_path)
    script = classic_script.classic_script()
    assert "const two = 2;\n\nasync function one() {}\n\nfunction hidden() {}\nreturn { two, one };" in script
    assert 'const { one: first, two } = modules["a.js"];\nfirst(two);\n' in script
