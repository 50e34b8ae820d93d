"""How a benchmark's text becomes rows of a model's table: cut and joined exactly as lm-eval's own HFLM does it.

Ids are those of the tokenizer until a `Request` is made of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evalsvc.data.tokenizer import TextTokenizer
from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.scoring import Request
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.sampling import SamplingParams

MAX_GEN_TOKS = 256
"""Ids that a generation draws at most where the benchmark names no number; HFLM's own."""

NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "early_stopping": False, "min_p": 0}
"""Options of a generation that say nothing at these values, and have no meaning here at others."""


def request_name(instance: Instance) -> str:
    """Return what messages call a request."""
    return f"benchmark {instance.task_name!r}, document {instance.doc_id}, request {instance.idx}"


@dataclass(frozen=True)
class Scored:
    """A log-likelihood request, ready to be scored."""

    requests: tuple[Request, ...]
    """One; of a text that is scored as a whole, one per window."""
    cut: bool
    """Its context did not fit and has lost its beginning."""
    continuation_cut: bool = False
    """Its continuation did not fit either, and what it has lost is not scored."""

    @property
    def tokens(self) -> int:
        return sum(len(request.continuation) for request in self.requests)


@dataclass(frozen=True)
class Prompted:
    """A generation request, ready to be drawn."""

    ids: tuple[int, ...]
    """The prompt, rows of the model's table."""
    cut: bool
    max_tokens: int
    until: tuple[str, ...]
    """The text ends before the first of these."""
    params: SamplingParams


@dataclass(frozen=True)
class EncodingIdentity:
    """What of an encoding is part of the protocol: two encodings with the same ask a model the same."""

    tokenizer: str
    """Digest of the tokenizer."""
    bos: int | None
    end_of_text: int | None
    max_length: int
    layout: str
    """Digest of the layout."""


@dataclass(frozen=True)
class TextEncoding:
    """A tokenizer, the rows of a model's table that its ids have, and what is put around them.

    Raises:
        InvalidData: the tokenizer is not the model's, or has no such id.
    """

    tokenizer: TextTokenizer
    layout: VocabularyLayout
    """Resolved."""
    max_length: int
    """Longest input of the model in tokens."""
    bos: int | None = None
    """Id of the tokenizer that is put before every context; HFLM's `add_bos_token`."""
    end_of_text: int | None = None
    """Id of the tokenizer that ends a generation, and stands for an empty context where there is no `bos` [the
    tokenizer's own]."""

    def __post_init__(self) -> None:
        self.tokenizer.require_fits(self.layout.text)
        for name, value in (("bos", self.bos), ("end_of_text", self.end_of_text)):
            if value is not None and not 0 <= value < self.tokenizer.size:
                raise InvalidData(
                    f"{name} is {value}; the tokenizer {self.tokenizer.path} has the ids 0…{self.tokenizer.size - 1}"
                )

    @property
    def end(self) -> int | None:
        """Id of the tokenizer that ends a text."""
        return self.tokenizer.end_of_text if self.end_of_text is None else self.end_of_text

    @property
    def prefix(self) -> int:
        """Id of the tokenizer that stands before a text without a context."""
        prefix = self.end if self.bos is None else self.bos
        if prefix is None:
            raise InvalidData(
                f"it has no context, and the tokenizer {self.tokenizer.path} names no end of text to put there; give "
                "the task `bos` or `end_of_text`"
            )
        return prefix

    @property
    def within_differs(self) -> bool:
        """Whether the table has anything but text, so that scores within the text ids are scores of their own."""
        return self.layout.rows != self.layout.text.size

    @property
    def identity(self) -> EncodingIdentity:
        """What of the encoding moves what a model is asked."""
        return EncodingIdentity(self.tokenizer.digest, self.bos, self.end, self.max_length, self.layout.digest)

    def encode(self, text: str) -> list[int]:
        """Ids of the tokenizer, `bos` first. A text that begins with it gets no second one, as in HFLM."""
        ids = self.tokenizer.encode(text)
        return ids if self.bos is None or ids[:1] == [self.bos] else [self.bos, *ids]

    def encode_all(self, instances: Sequence[Instance]) -> Iterator[Scored | Prompted]:
        """Yield every request of `instances`, encoded.

        Raises:
            InvalidData: names the request: nothing of its continuation is left as ids of its own, or its options for
                a generation are not understood.
        """
        contexts = _Contexts(self)
        for instance in instances:
            try:
                yield contexts.request(instance)
            except (InvalidData, InvalidRequest) as error:
                raise InvalidData(f"{request_name(instance)}: {error.message}") from None

    def scored(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        """A request of ids of the tokenizer. What is too long is cut from the left, the continuation too if it must be.

        HFLM fails on a continuation that is longer than the model's input. One document would then be the end of all.
        """
        if not continuation:
            raise InvalidData(
                "its continuation has no tokens of its own: the tokenizer joins it to the context; change the "
                "benchmark's delimiter"
            )
        whole = [*context, *continuation]
        kept = whole[-(self.max_length + 1) :]
        start = max(len(kept) - len(continuation), 1)
        requests = (Request(self._rows(kept[:start]), self._rows(kept[start:])),)
        return Scored(requests, len(kept) < len(whole), len(continuation) > self.max_length)

    def windows(self, text: str) -> Scored:
        """A text as a whole, in windows as long as the model's input; each token is scored once.

        Its first token follows `prefix`. Unlike HFLM with `add_bos_token` this does not also score the `bos` itself.
        """
        pairs = get_rolling_token_windows(self.tokenizer.encode(text), self.prefix, self.max_length, context_len=1)
        requests = (Request(*map(self._rows, make_disjoint_window(pair))) for pair in pairs)
        return Scored(tuple(requests), cut=False)

    def prompted(self, context: Sequence[int], options: Mapping[str, object]) -> Prompted:
        """A generation after ids of the tokenizer. What leaves no room for it is cut from the left."""
        wanted = dict(normalize_gen_kwargs(options, MAX_GEN_TOKS))
        max_tokens, until = int(wanted.pop("max_gen_toks")), wanted.pop("until")
        room = self.max_length - max_tokens
        if room < 1 or max_tokens < 1:
            raise InvalidData(
                f"it asks for {max_tokens} tokens, the model's input and output together are {self.max_length}; set "
                "`max_gen_toks` in the benchmark's `generation_kwargs`"
            )
        end = None if self.end is None else self.tokenizer.decode([self.end], skip_special=False)
        terms = tuple(term for term in handle_stop_sequences(list(until), eos=end) if term)
        kept = context[-room:]
        return Prompted(self._rows(kept), len(kept) < len(context), max_tokens, terms, _sampling(wanted))

    def _rows(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.layout.text.offset + token for token in ids)


class _Contexts:
    """Requests one after the other: the options of a question share a context, which is encoded once."""

    def __init__(self, encoding: TextEncoding) -> None:
        self._encoding = encoding
        self._text: str | None = None
        self._ids: list[int] = []

    def request(self, instance: Instance) -> Scored | Prompted:
        encoding = self._encoding
        if instance.request_type == "loglikelihood_rolling":
            return encoding.windows(instance.args[0])
        if instance.request_type == "generate_until":
            context, options = instance.args
            return encoding.prompted(self._encode(context) or [encoding.prefix], options)
        if instance.request_type == "loglikelihood":
            return encoding.scored(*self._pair(*instance.args))
        raise InvalidData(f"it is of the kind {instance.request_type!r}, which is not answered here")

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """As TemplateLM's `loglikelihood`: both are encoded together and parted where the context alone ends."""
        if not context:
            prefix, ids = self._encoding.prefix, self._encoding.tokenizer.encode(continuation)
            return (ids[:1], ids[1:]) if ids[:1] == [prefix] else ([prefix], ids)
        kept = context.rstrip()
        whole = self._encoding.encode(context + continuation)
        before = self._encode(kept)
        return before or [self._encoding.prefix], whole[len(before) :]

    def _encode(self, text: str) -> list[int]:
        if text != self._text:
            self._text, self._ids = text, self._encoding.encode(text)
        return self._ids


def _sampling(options: dict[str, Any]) -> SamplingParams:
    """What is left of a generation's options after its length and its ends."""
    sampled, temperature = options.pop("do_sample", False), options.pop("temperature", 0.0)
    top_k, top_p = options.pop("top_k", None), options.pop("top_p", None)
    for name, value in options.items():
        if name not in NEUTRAL or value not in (None, NEUTRAL[name]):
            raise InvalidData(f"its generation option {name}: {value!r} has no meaning here; take it out")
    if not sampled or not temperature:
        return SamplingParams(temperature=0)
    return SamplingParams(temperature, top_k or None, top_p)
