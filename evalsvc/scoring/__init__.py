"""Log-likelihoods of continuations: requests in, scores out."""

from evalsvc.scoring.packing import Request
from evalsvc.scoring.scorer import Score, score

__all__ = ["Request", "Score", "score"]
