"""A checkpoint's answers in files, so that no task and no evaluation of this service asks the same question twice.

A folder belongs to a checkpoint and everything else that affects its answers. A file holds the answers of one shard by
the digests of their questions, so other suites find them too. The least recently used files are deleted first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import TypeAlias

from pydantic import TypeAdapter

from evalsvc.errors import DataDirectoryUnusable
from evalsvc.files.atomic import FileLost
from evalsvc.files.kept import ANSWERS, KeptFolder
from evalsvc.language.lm import AnswerRow
from evalsvc.spec.protocol import digest

log = logging.getLogger(__name__)

Answers: TypeAlias = dict[str, list[AnswerRow]]
"""Answers by the digests of their questions; several answers if a random draw is repeated."""

KEPT: TypeAdapter[Answers] = TypeAdapter(Answers)


def find_answers(files: KeptFolder, key: Mapping[str, object]) -> Answers:
    """Return the answers kept under `key`, by the digests of the questions. Damaged files are ignored."""
    answers: Answers = {}
    for name in sorted(files.names(_folder(key))):
        answers |= _read(files, name, key)
    return answers


def keep_answers(files: KeptFolder, key: Mapping[str, object], answers: Answers) -> None:
    """Keep answers, by digest of the question, under `key`, which holds everything else that they depend on."""
    name = f"{_folder(key)}/{digest(sorted(answers))}.json"
    content = json.dumps({"key": key, "answers": answers}).encode()
    try:
        files.keep_bytes(name, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except DataDirectoryUnusable as error:  # costs only time
        log.warning("answers are not kept: %s", error.message)


def _folder(key: Mapping[str, object]) -> str:
    return f"{ANSWERS}/{digest(key)}"


def _read(files: KeptFolder, name: str, key: Mapping[str, object]) -> Answers:
    try:
        with files.open(name) as stream:
            checksum, _, content = stream.read().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            return {}
        content_read = json.loads(content)
        return KEPT.validate_python(content_read["answers"]) if content_read["key"] == key else {}
    except (FileLost, OSError, ValueError, TypeError, KeyError):
        return {}
