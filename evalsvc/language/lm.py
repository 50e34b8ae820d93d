"""Our models under lm-eval: packed scoring and cached generation behind its `LM`.

    lm_eval.evaluator.evaluate(OpenLM(model, encoding), tasks)

works in a notebook, and gives HFLM's numbers. The tasks of evalsvc ask `answers` instead, which has every score twice,
over all ids and within the text ids.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.utils import postprocess_generated_text

from evalsvc.data.tokenizer import render
from evalsvc.language.encoding import Prompted, Scored, TextEncoding, request_name
from evalsvc.models import Transformer
from evalsvc.sampling import Continuation, complete
from evalsvc.scoring import Score, score

BATCH_TOKENS = 16384
"""Where nobody says how many tokens fit; a CPU takes fewer in any case, see `score`."""

LOOK_BACK = 2
"""Tokens beyond a stop string's own in which it is looked for: it may be drawn in other tokens. HFLM's number."""


@dataclass(frozen=True)
class Answer:
    """To a log-likelihood request."""

    score: Score
    tokens: int
    """Of the continuation."""
    cut: bool
    """The context had lost its beginning."""
    continuation_cut: bool = False
    """So had the continuation."""


@dataclass(frozen=True)
class Generation:
    """To a generation request."""

    text: str
    text_within: str
    """What is drawn when only text ids can come."""
    cut: bool


AnswerRow = tuple[float, bool, float, bool, float, int, bool, bool] | tuple[str, str, bool]
"""An answer as it travels: a score and the other fields of `Answer`, or the fields of `Generation`."""


class OpenLM(LM):  # type: ignore[misc]
    """A model of evalsvc as a model of lm-eval."""

    def __init__(
        self,
        model: Transformer,
        encoding: TextEncoding,
        *,
        batch_tokens: int = BATCH_TOKENS,
        report: Callable[[int], None] = lambda done: None,
    ) -> None:
        """`batch_tokens`: how many tokens, padding included, are computed at once. `report` gets the number of
        requests that are answered, while `answers` works; what it raises (e.g. Cancelled) ends the work."""
        super().__init__()
        self.model = model
        self.encoding = encoding
        self.batch_tokens = batch_tokens
        self.report = report

    def answers(self, instances: Sequence[Instance]) -> list[Answer | Generation]:
        """The answer to each request, in their order.

        A generation that draws its ids at random draws others each time that its instance is given.

        Raises:
            InvalidData: names the request: see `TextEncoding.encode_all`; where llama_rotary's table ends.
            NonFinite: names the request and the first part of the model that is at fault.
        """
        encoded = list(self.encoding.encode_all(instances))
        scored = {index: one for index, one in enumerate(encoded) if isinstance(one, Scored)}
        prompted = {index: one for index, one in enumerate(encoded) if isinstance(one, Prompted)}
        found: dict[int, Answer | Generation] = dict(self._score(scored, instances))
        found |= self._generate(prompted, _noise_ids(instances), len(scored))
        return [found[index] for index in range(len(instances))]

    def score_requests(self, instances: Sequence[Instance]) -> list[Score]:
        """The score of each log-likelihood request; that of a text is the sum over its windows."""
        return [answer.score for answer in self.answers(instances) if isinstance(answer, Answer)]

    # what lm-eval asks of a model

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return [(score.logprob, score.greedy) for score in self.score_requests(requests)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        return [score.logprob for score in self.score_requests(requests)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [answer.text for answer in self.answers(requests) if isinstance(answer, Generation)]

    # how it is answered

    def _score(self, scored: dict[int, Scored], instances: Sequence[Instance]) -> dict[int, Answer]:
        owners = [index for index, one in scored.items() for _ in one.requests]
        scores = score(
            self.model,
            self.encoding.layout,
            [request for one in scored.values() for request in one.requests],
            self.batch_tokens,
            # Of a text in windows some may be done: it counts when the last one is.
            lambda done: self.report(done * len(scored) // max(len(owners), 1)),
            name=lambda place: request_name(instances[owners[place]]),
        )
        parts = iter(scores)
        return {
            index: Answer(_sum([next(parts) for _ in one.requests]), one.tokens, one.cut, one.continuation_cut)
            for index, one in scored.items()
        }

    def _generate(self, prompted: dict[int, Prompted], noise_ids: Sequence[str], before: int) -> dict[int, Generation]:
        """`before` is how many requests were answered already."""
        found: dict[int, Generation] = {}
        by_params = sorted(prompted, key=lambda index: repr(prompted[index].params))
        for _, group in groupby(by_params, key=lambda index: prompted[index].params):
            asked = {index: prompted[index] for index in group}
            found |= self._generate_alike(asked, noise_ids, before + len(found))
        return found

    def _generate_alike(
        self, asked: dict[int, Prompted], noise_ids: Sequence[str], before: int
    ) -> dict[int, Generation]:
        """Of requests with the same params."""
        drawn = self._complete(asked, noise_ids, None, lambda completed: self.report(before + completed))
        # Noise belongs to an id, so what is all text is drawn again within text, but where the choice is narrowed.
        again = {index: one for index, one in asked.items() if self._may_differ(one, drawn[index])}
        text, done = self.encoding.layout.text_ids, before + len(asked)
        within = drawn | self._complete(again, noise_ids, text, lambda completed: self.report(done))
        return {
            index: Generation(self._text(drawn[index], one.until), self._text(within[index], one.until), one.cut)
            for index, one in asked.items()
        }

    def _may_differ(self, one: Prompted, rows: Sequence[int]) -> bool:
        narrowed = one.params.top_k is not None or one.params.top_p is not None
        return self.encoding.within_differs and (narrowed or not set(rows) <= set(self.encoding.layout.text_ids))

    def _complete(
        self,
        asked: dict[int, Prompted],
        noise_ids: Sequence[str],
        allowed: range | None,
        report: Callable[[int], None],
    ) -> dict[int, list[int]]:
        """Rows of the table that are drawn for each request of `asked`; all have the same params."""
        if not asked:
            return {}
        ends = [_Ends(self.encoding, one.until) for one in asked.values()]
        end = self.encoding.end
        drawn = complete(
            self.model,
            [Continuation(noise_ids[index], one.ids, one.max_tokens) for index, one in asked.items()],
            next(iter(asked.values())).params,
            batch_tokens=self.batch_tokens,
            allowed=allowed,
            stop=lambda place, rows: ends[place].reached(rows),
            end=frozenset() if end is None else frozenset({self.encoding.layout.text.offset + end}),
            report=report,
        )
        return dict(zip(asked, drawn, strict=True))

    def _text(self, rows: Sequence[int], until: Sequence[str]) -> str:
        text = render(rows, self.encoding.layout, self.encoding.tokenizer)
        return str(postprocess_generated_text(text, list(until), None))


class _Ends:
    """Whether a generation has come to one of its stop strings, as HFLM looks for them."""

    def __init__(self, encoding: TextEncoding, until: Sequence[str]) -> None:
        self.encoding = encoding
        self.terms = {term: len(encoding.tokenizer.encode(term)) + LOOK_BACK for term in until}

    def reached(self, rows: Sequence[int]) -> bool:
        offset, size = self.encoding.layout.text.offset, self.encoding.tokenizer.size
        # A stop string does not go on beyond what is no text.
        ids = [row - offset for row in takewhile(lambda row: 0 <= row - offset < size, reversed(rows))]
        decode = self.encoding.tokenizer.decode
        return any(term in decode(ids[:length][::-1], skip_special=False) for term, length in self.terms.items())


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


def _noise_ids(instances: Sequence[Instance]) -> list[str]:
    """What the noise of each generation is drawn for: benchmark, document, request, and which repetition it is."""
    seen = Counter[str]()
    ids = []
    for instance in instances:
        name = f"{instance.task_name}/{instance.doc_id}/{instance.idx}"
        ids.append(f"{name}/{seen[name]}")
        seen[name] += 1
    return ids


def to_row(answer: Answer | Generation) -> AnswerRow:
    """Return an answer as the row that travels."""
    if isinstance(answer, Generation):
        return answer.text, answer.text_within, answer.cut
    found = answer.score
    columns = found.logprob, found.greedy, found.logprob_within, found.greedy_within, found.image_mass
    return *columns, answer.tokens, answer.cut, answer.continuation_cut


def from_row(row: AnswerRow) -> Answer | Generation:
    """Return the answer that `to_row` was given."""
    return Generation(*row) if len(row) == 3 else Answer(Score(*row[:5]), *row[5:])
