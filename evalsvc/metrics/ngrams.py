"""Repetition within a text and variety over several texts, by n-grams of ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def seq_rep(ids: Sequence[int], n: int) -> float | None:
    """Compute seq-rep-n: the share of a continuation's n-grams that repeat an earlier one, 1 − |unique| / |all|.

    None for a continuation shorter than n.

    Source: Welleck, Kulikov, Roller, Dinan, Cho, Weston, "Neural Text Generation with Unlikelihood Training" (ICLR
    2020, arXiv 1908.04319), section 6, where n is 4.
    """
    distinct = distinct_n([ids], n)
    return None if distinct is None else 1 - distinct


def distinct_n(texts: Iterable[Sequence[int]], n: int) -> float | None:
    """Compute distinct-n: different n-grams of all texts together over all n-grams; 1 where no n-gram repeats.

    The value falls with the number of ids, so only texts of about equal lengths are comparable. None where no text has
    an n-gram.

    Source: Li, Galley, Brockett, Gao, Dolan, "A Diversity-Promoting Objective Function for Neural Conversation Models"
    (NAACL 2016, arXiv 1510.03055), who divide by the number of words for n = 2 too.
    """
    grams = [tuple(ids[start : start + n]) for ids in texts for start in range(len(ids) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None
