"""Files as torch.save writes them, for tests of what reads them without torch."""

from pathlib import Path
from typing import Any


def save_filled(path: Path, content: dict[str, Any]) -> None:
    import torch

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: convert(inner) for key, inner in value.items()}
        return torch.tensor(value) if isinstance(value, list) else value

    torch.save(convert(content), path)
