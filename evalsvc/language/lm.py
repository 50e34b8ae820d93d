"""evalsvc's models under lm-eval: packed scoring and cached generation behind lm-eval's `LM`.

    lm_eval.evaluator.evaluate(OpenLM(model, encoding), tasks)

works in a notebook, and gives HFLM's numbers. The tasks of evalsvc call `answers` instead, which has every score twice,
over all ids and within the text ids.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, groupby, takewhile
from typing import Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import postprocess_generated_text

from evalsvc.data.tokenizer import render
from evalsvc.language.encoding import Prompted, Scored, TextEncoding, request_name
from evalsvc.models.language_model import LanguageModel
from evalsvc.sampling import Continuation, complete
from evalsvc.scoring import Score, score

BATCH_TOKENS = 16384
"""Default number of tokens per batch; a CPU takes fewer in any case, see `score`."""

LOOK_BACK = 2
"""Number of tokens beyond a stop string's own that are searched: HFLM's. The string may be drawn as other tokens."""


@dataclass(frozen=True)
class Answer:
    score: Score
    tokens: int
    cut: bool
    """Whether the context lost its beginning."""
    continuation_cut: bool = False


@dataclass(frozen=True)
class Generation:
    text: str
    text_within: str
    cut: bool


AnswerRow = tuple[float, bool, float, bool, float, int, bool, bool] | tuple[str, str, bool]
"""Answer in transit: a score and the other fields of `Answer`, or the fields of `Generation`."""


class Scoring(Protocol):
    """Engine of the stage `scoring`: a model with its encoding, which answers requests."""

    report: Callable[[int], None]
    """Callback for the number of answered requests; its exceptions, such as Cancelled, end the work."""

    def answers(self, instances: Sequence[Instance]) -> list[Answer | Generation]:
        """Return the answer to each request, in order."""


class OpenLM(LM):  # type: ignore[misc]
    """Model of evalsvc as a model of lm-eval."""

    def __init__(
        self,
        model: LanguageModel,
        encoding: TextEncoding,
        *,
        batch_tokens: int = BATCH_TOKENS,
        report: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Wrap a model with its encoding. `batch_tokens` tokens, padding included, are computed together."""
        super().__init__()
        self.model, self.encoding, self.batch_tokens, self.report = model, encoding, batch_tokens, report

    def answers(self, instances: Sequence[Instance]) -> list[Answer | Generation]:
        """Return the answer to each request, in order. A random generation draws other ids each time it is given."""
        encoded = list(self.encoding.encode_all(instances))
        scored = {index: request for index, request in enumerate(encoded) if isinstance(request, Scored)}
        prompted = {index: request for index, request in enumerate(encoded) if isinstance(request, Prompted)}
        answers: dict[int, Answer | Generation] = dict(self._score(scored, instances))
        seen: defaultdict[str, Iterator[int]] = defaultdict(count)
        names = (f"{instance.task_name}/{instance.doc_id}/{instance.idx}" for instance in instances)
        answers |= self._generate(prompted, [f"{name}/{next(seen[name])}" for name in names], len(scored))
        return [answers[index] for index in range(len(instances))]

    def score_requests(self, instances: Sequence[Instance]) -> list[Score]:
        """Return the score of each log-likelihood request; the score of a text is the sum over its windows."""
        return [answer.score for answer in self.answers(instances) if isinstance(answer, Answer)]

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(score.logprob, score.greedy) for score in self.score_requests(requests)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return [score.logprob for score in self.score_requests(requests)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [answer.text for answer in self.answers(requests) if isinstance(answer, Generation)]

    def _score(self, scored: dict[int, Scored], instances: Sequence[Instance]) -> dict[int, Answer]:
        owners = [index for index, asked in scored.items() for _ in asked.requests]
        scores = score(
            self.model,
            self.encoding.layout,
            [request for asked in scored.values() for request in asked.requests],
            self.batch_tokens,
            # A text in windows counts as done when its last window is.
            lambda done: self.report(done * len(scored) // max(len(owners), 1)),
            name=lambda place: request_name(instances[owners[place]]),
        )
        parts = iter(scores)
        return {
            index: Answer(_sum([next(parts) for _ in asked.requests]), asked.tokens, asked.cut, asked.continuation_cut)
            for index, asked in scored.items()
        }

    def _generate(self, prompted: dict[int, Prompted], noise_ids: Sequence[str], before: int) -> dict[int, Generation]:
        answers: dict[int, Generation] = {}
        by_params = sorted(prompted, key=lambda index: repr(prompted[index].params))
        for _, group in groupby(by_params, key=lambda index: prompted[index].params):
            asked = {index: prompted[index] for index in group}
            answers |= self._generate_alike(asked, noise_ids, before + len(answers))
        return answers

    def _generate_alike(
        self, asked: dict[int, Prompted], noise_ids: Sequence[str], before: int
    ) -> dict[int, Generation]:
        everything = self.encoding.drawn_from
        drawn = self._complete(asked, noise_ids, everything, lambda completed: self.report(before + completed))
        # Noise belongs to an id, so a text-only draw is the same within text, unless top-k or top-p narrows the choice.
        text, done = self.encoding.drawn_from_within, before + len(asked)
        again = {
            index: request
            for index, request in asked.items()
            if self.encoding.within_differs
            and (
                (request.params.top_k, request.params.top_p) != (None, None)
                or not all(any(row in part for part in text) for row in drawn[index])
            )
        }
        within = drawn | self._complete(again, noise_ids, text, lambda completed: self.report(done))
        return {
            index: Generation(
                self._text(drawn[index], request.until), self._text(within[index], request.until), request.cut
            )
            for index, request in asked.items()
        }

    def _complete(
        self,
        asked: dict[int, Prompted],
        noise_ids: Sequence[str],
        allowed: Sequence[range] | None,
        report: Callable[[int], None],
    ) -> dict[int, list[int]]:
        if not asked:
            return {}
        stops = [_stop(self.encoding, request.until) for request in asked.values()]
        end = self.encoding.end_row
        drawn = complete(
            self.model,
            [Continuation(noise_ids[index], request.ids, request.max_tokens) for index, request in asked.items()],
            next(iter(asked.values())).params,
            batch_tokens=self.batch_tokens,
            allowed=allowed,
            stop=lambda place, rows: stops[place](rows),
            end=frozenset() if end is None else frozenset({end}),
            report=report,
        )
        return dict(zip(asked, drawn, strict=True))

    def _text(self, rows: Sequence[int], until: Sequence[str]) -> str:
        if rows and rows[-1] == self.encoding.end_row and not self.encoding.is_text(rows[-1]):
            rows = rows[:-1]  # a special row, whose name would be shown
        text = render(rows, self.encoding.layout, self.encoding.tokenizer)
        return str(postprocess_generated_text(text, list(until), None))


def _stop(encoding: TextEncoding, until: Sequence[str]) -> Callable[[Sequence[int]], bool]:
    offset, size, decode = encoding.layout.text.offset, encoding.tokenizer.size, encoding.tokenizer.decode

    def is_known_text(row: int) -> bool:
        return row - offset < size and encoding.is_text(row)

    terms = {term: len(encoding.tokenizer.encode(term)) + LOOK_BACK for term in until}

    def is_reached(rows: Sequence[int]) -> bool:
        # A stop string does not span ids that are no text.
        ids = [row - offset for row in takewhile(is_known_text, reversed(rows))]
        return any(term in decode(ids[:length][::-1], skip_special=False) for term, length in terms.items())

    return is_reached


def _sum(scores: Sequence[Score]) -> Score:
    if len(scores) == 1:
        return scores[0]
    return Score(
        sum((score.logprob for score in scores), 0.0),
        all(score.greedy for score in scores),
        sum((score.logprob_within for score in scores), 0.0),
        all(score.greedy_within for score in scores),
        sum((score.image_mass for score in scores), 0.0),
    )


def to_row(answer: Answer | Generation) -> AnswerRow:
    if isinstance(answer, Generation):
        return answer.text, answer.text_within, answer.cut
    score = answer.score
    columns = score.logprob, score.greedy, score.logprob_within, score.greedy_within, score.image_mass
    return *columns, answer.tokens, answer.cut, answer.continuation_cut


def from_row(row: AnswerRow) -> Answer | Generation:
    return Generation(*row) if len(row) == 3 else Answer(Score(*row[:5]), *row[5:])
