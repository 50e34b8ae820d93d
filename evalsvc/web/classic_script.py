"""The pages' modules as one script that is no module, for pages that a browser opens from a disk."""

from __future__ import annotations

import re

from evalsvc.web.page import STATIC

FIRST = "main.js"
"""The module that imports the others."""

_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./([a-z_]+\.js)";\n', re.MULTILINE)

_EXPORT = re.compile(r"^export (?:async )?(?:function|const|let|class) (\w+)", re.MULTILINE)


def classic_script() -> str:
    """Return all modules of the pages as one script. Each module is a function, so that names do not collide."""
    modules: dict[str, str] = {}
    _add(modules, FIRST)
    return '"use strict";\n(() => {\nconst modules = {};\n' + "".join(modules.values()) + "})();\n"


def _add(modules: dict[str, str], name: str) -> None:
    """Add a module after those that it imports."""
    if name in modules:
        return
    text = (STATIC / name).read_text()
    for _, imported in _IMPORT.findall(text):
        _add(modules, imported)
    exported = ", ".join(_EXPORT.findall(text))
    text = _IMPORT.sub(_as_constants, text)
    text = re.sub(r"^export ", "", text, flags=re.MULTILINE)
    modules[name] = f'modules["{name}"] = (() => {{\n{text}return {{ {exported} }};\n}})();\n'


def _as_constants(match: re.Match[str]) -> str:
    """Return an import as constants."""
    names = match[1].replace(" as ", ": ")
    return f'const {{{names}}} = modules["{match[2]}"];\n'
