"""Encoding of a benchmark's text as rows of a model's table, with lm-eval's HFLM's truncation and joining.

Ids are those of the tokenizer up to the `Request`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from evalsvc.data.tokenizer import TextTokenizer
from evalsvc.errors import InvalidData, InvalidRequest
from evalsvc.metrics.token_loss import gaps
from evalsvc.scoring import Request
from evalsvc.spec.layout import VocabularyLayout
from evalsvc.spec.sampling import SamplingParams

MAX_GEN_TOKS = 256
"""Largest number of generated ids for benchmarks without a number, as in HFLM."""

NEUTRAL = {"num_beams": 1, "num_return_sequences": 1, "repetition_penalty": 1, "early_stopping": False, "min_p": 0}
"""Options of a generation with the values at which they have no effect; other values are not supported."""


def request_name(instance: Instance) -> str:
    return f"benchmark {instance.task_name!r}, document {instance.doc_id}, request {instance.idx}"


@dataclass(frozen=True)
class Scored:
    requests: tuple[Request, ...]
    """One request; for a text that is scored as a whole, one request per window."""
    cut: bool
    continuation_cut: bool = False
    """Whether the continuation was too long too; its lost part is not scored."""

    @property
    def tokens(self) -> int:
        return sum(len(request.continuation) for request in self.requests)


@dataclass(frozen=True)
class Prompted:
    ids: tuple[int, ...]
    """Ids of the prompt, rows of the model's table."""
    cut: bool
    max_tokens: int
    until: tuple[str, ...]
    """Stop strings; the text ends before the first that occurs."""
    params: SamplingParams


@dataclass(frozen=True)
class EncodingIdentity:
    """Part of an encoding in the protocol: with the same identity, models get the same requests."""

    tokenizer: str
    """Digest of the tokenizer."""
    bos: int | None
    end_of_text: int | None
    max_length: int
    layout: str
    """Digest of the layout."""


@dataclass(frozen=True)
class TextEncoding:
    """Tokenizer, the rows of a model's table for its ids, and the ids put around texts."""

    tokenizer: TextTokenizer
    layout: VocabularyLayout
    max_length: int
    bos: int | None = None
    """Tokenizer's id that is put before every context, as HFLM's `add_bos_token`."""
    end_of_text: int | None = None
    """Tokenizer's id that ends a generation, and replaces an empty context without `bos`; by default its own."""
    heads_apart: bool = False
    """Whether image ids have a head of their own, so that text is never compared with them."""

    def __post_init__(self) -> None:
        self.tokenizer.require_fits(self.layout.text)
        for name, value in (("bos", self.bos), ("end_of_text", self.end_of_text)):
            if value is not None and not 0 <= value < self.tokenizer.size:
                raise InvalidData(
                    f"{name} is {value}; the tokenizer {self.tokenizer.path} has the ids 0…{self.tokenizer.size - 1}"
                )

    @property
    def end(self) -> int | None:
        """Tokenizer's id that ends a text."""
        return self.tokenizer.end_of_text if self.end_of_text is None else self.end_of_text

    @property
    def prefix(self) -> int:
        """Tokenizer's id before a text without a context."""
        prefix = self.end if self.bos is None else self.bos
        if prefix is None:
            raise InvalidData(
                f"it has no context, and the tokenizer {self.tokenizer.path} names no end of text to use instead; give "
                "the task `bos` or `end_of_text`"
            )
        return prefix

    @property
    def within_differs(self) -> bool:
        """Whether the table has rows other than text, so that scores within the text ids differ."""
        return self.layout.rows != sum(map(len, self.layout.text_ranges))

    @property
    def end_row(self) -> int | None:
        return None if self.end is None else self.layout.text.offset + self.end

    @property
    def drawn_from(self) -> Sequence[range] | None:
        """Rows that the ids of a generation come from; None: all."""
        return gaps(self.layout.rows or 0, self.layout.image_range) if self.heads_apart else None

    @property
    def drawn_from_within(self) -> Sequence[range]:
        """Rows of text ids, and of the end of a text."""
        end = [] if self.end_row is None or self.is_text(self.end_row) else [range(self.end_row, self.end_row + 1)]
        return sorted((*self.layout.text_ranges, *end), key=lambda part: part.start)

    def is_text(self, row: int) -> bool:
        return any(row in part for part in self.layout.text_ranges)

    @property
    def identity(self) -> EncodingIdentity:
        return EncodingIdentity(self.tokenizer.digest, self.bos, self.end, self.max_length, self.layout.digest)

    def encode(self, text: str) -> list[int]:
        """Return ids of the tokenizer with `bos` first, see `TextTokenizer.encode`."""
        return self.tokenizer.encode(text, self.bos)

    def encode_all(self, instances: Sequence[Instance]) -> Iterator[Scored | Prompted]:
        encode = lru_cache(maxsize=1)(self.encode)  # the options of a question share a context
        for instance in instances:
            try:
                yield self._request(instance, encode)
            except (InvalidData, InvalidRequest) as error:
                raise InvalidData(f"{request_name(instance)}: {error.message}") from None

    def _request(self, instance: Instance, encode: Callable[[str], list[int]]) -> Scored | Prompted:
        if instance.request_type == "loglikelihood_rolling":
            return self.windows(instance.args[0])
        if instance.request_type == "generate_until":
            context, options = instance.args
            return self.prompted(encode(context) or [self.prefix], options)
        if instance.request_type != "loglikelihood":
            kind = instance.request_type
            raise InvalidData(f"it is of the kind {kind!r}, which is not supported; remove the benchmark")
        context, continuation = instance.args
        if not context:
            prefix, ids = self.prefix, self.tokenizer.encode(continuation)
            return self.scored([prefix], ids[1:] if ids[:1] == [prefix] else ids)
        # As TemplateLM's `loglikelihood`: both texts are encoded together, and split where the context alone ends.
        before, whole = encode(context.rstrip()), self.encode(context + continuation)
        return self.scored(before or [self.prefix], whole[len(before) :])

    def scored(self, context: Sequence[int], continuation: Sequence[int]) -> Scored:
        """Return a request of the tokenizer's ids, cut from the left to the model's input, also in a longer
        continuation, on which HFLM fails, so that one document would end the evaluation."""
        if not continuation:
            raise InvalidData(
                "its continuation has no separate tokens: the tokenizer joins it to the context; change the "
                "benchmark's delimiter"
            )
        whole = [*context, *continuation]
        kept = whole[-(self.max_length + 1) :]
        start = max(len(kept) - len(continuation), 1)
        requests = (Request(self._rows(kept[:start]), self._rows(kept[start:])),)
        return Scored(requests, len(kept) < len(whole), len(continuation) > self.max_length)

    def windows(self, text: str) -> Scored:
        """Return a text in windows of the model's input, the first after `prefix`; `bos` itself is not scored."""
        pairs = get_rolling_token_windows(self.tokenizer.encode(text), self.prefix, self.max_length, context_len=1)
        requests = (Request(*map(self._rows, make_disjoint_window(pair))) for pair in pairs)
        return Scored(tuple(requests), cut=False)

    def prompted(self, context: Sequence[int], options: Mapping[str, object]) -> Prompted:
        """Return a generation request after ids of the tokenizer, cut from the left to leave room for new ids."""
        wanted = dict(normalize_gen_kwargs(options, MAX_GEN_TOKS))
        max_tokens, until = int(wanted.pop("max_gen_toks")), wanted.pop("until")
        room = self.max_length - max_tokens
        if room < 1 or max_tokens < 1:
            raise InvalidData(
                f"it requests {max_tokens} tokens, but the model's input and output together have {self.max_length}; "
                "set `max_gen_toks` in the benchmark's `generation_kwargs`"
            )
        end = None if self.end is None else self.tokenizer.decode([self.end], skip_special=False)
        terms = tuple(term for term in handle_stop_sequences(list(until), eos=end) if term)
        kept = context[-room:]
        return Prompted(self._rows(kept), len(kept) < len(context), max_tokens, terms, _sampling(wanted))

    def _rows(self, ids: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.layout.text.offset + token for token in ids)


def _sampling(options: dict[str, Any]) -> SamplingParams:
    sampled, temperature = options.pop("do_sample", False), options.pop("temperature", 0.0)
    top_k, top_p = options.pop("top_k", None), options.pop("top_p", None)
    for name, value in options.items():
        if name not in NEUTRAL or value not in (None, NEUTRAL[name]):
            raise InvalidData(f"its generation option {name}: {value!r} is not supported; remove the option")
    if not sampled or not temperature:
        return SamplingParams(temperature=0)
    return SamplingParams(temperature, top_k or None, top_p)
