"""What a checkpoint answered, kept in files: no task and no evaluation of this service asks it the same again.

A folder belongs to a checkpoint and to all else that moves its answers; a file in it has the answers of one shard by
the digests of their questions, so that other suites find them too. Files that were used least recently go first.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from typing import TypeAlias

from pydantic import TypeAdapter

from evalsvc.errors import DataDirectoryUnusable
from evalsvc.files.kept import ANSWERS, KeptFileLost, KeptFiles
from evalsvc.language.lm import AnswerRow
from evalsvc.spec.protocol import digest

log = logging.getLogger(__name__)

Answers: TypeAlias = dict[str, list[AnswerRow]]
"""Answers to questions, by the digests of the questions; several answers where a random draw is repeated."""

KEPT: TypeAdapter[Answers] = TypeAdapter(Answers)


def find_answers(files: KeptFiles, key: Mapping[str, object]) -> Answers:
    """What was kept under `key`, by the digests of the questions; without what is damaged."""
    found: Answers = {}
    for name in sorted(files.names(_folder(key))):
        found |= _read(files, name, key)
    return found


def keep_answers(files: KeptFiles, key: Mapping[str, object], answers: Answers) -> None:
    """Keep answers to questions, by digest, under `key`, which says all else that they depend on."""
    name = f"{_folder(key)}/{digest(sorted(answers))}.json"
    content = json.dumps({"key": key, "answers": answers}).encode()
    try:
        files.keep_bytes(name, hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    except DataDirectoryUnusable as error:  # costs time and nothing else
        log.warning("answers are not kept: %s", error.message)


def _folder(key: Mapping[str, object]) -> str:
    return f"{ANSWERS}/{digest(key)}"


def _read(files: KeptFiles, name: str, key: Mapping[str, object]) -> Answers:
    try:
        with files.open(name) as stream:
            checksum, _, content = stream.read().partition(b"\n")
        if hashlib.sha256(content).hexdigest().encode() != checksum:
            return {}
        found = json.loads(content)
        return KEPT.validate_python(found["answers"]) if found["key"] == key else {}
    except (KeptFileLost, OSError, ValueError, TypeError, KeyError):
        return {}
