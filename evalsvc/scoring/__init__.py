"""Log-likelihoods of continuations: requests in, scores out."""

from evalsvc.scoring.scorer import Request, Score, score

__all__ = ["Request", "Score", "score"]
