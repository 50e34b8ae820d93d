"""Scoring by lm-eval's own model class, HFLM, around the model of any engine: the engine `hflm`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import accelerate  # noqa: F401  its absence is reported first: the extra that has it has transformers too
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from evalsvc.errors import EvalsvcError, InvalidData
from evalsvc.language.encoding import Scored, TextEncoding, request_name
from evalsvc.language.hub import offline, one_line, quiet
from evalsvc.language.lm import BATCH_TOKENS, Answer, Generation
from evalsvc.models.language_model import LanguageModel
from evalsvc.scoring import Score

BATCH = 16


class HflmScoring:
    """Answers of lm-eval's HFLM, over all ids and within the text ids; see `lm.Scoring`."""

    def __init__(
        self,
        model: LanguageModel,
        encoding: TextEncoding,
        *,
        batch_tokens: int = BATCH_TOKENS,
        report: Callable[[int], None] = lambda done: None,
    ) -> None:
        """Wrap a model with its encoding; HFLM forms batches of BATCH requests."""
        self.encoding, self.report = encoding, report
        self.everything = build_hflm(model, encoding)
        self.within = build_hflm(model, encoding, within=True) if encoding.within_differs else self.everything

    def answers(self, instances: Sequence[Instance]) -> list[Answer | Generation]:
        """Return the answer to each request, in order. The mass on image ids, which HFLM does not compute, is NaN."""
        encoded = list(self.encoding.encode_all(instances))
        for instance, request in zip(instances, encoded, strict=True):
            if reason := self._unanswerable(instance, isinstance(request, Scored) and request.continuation_cut):
                raise InvalidData(f"{request_name(instance)}: {reason}")
        answers: dict[int, Answer | Generation] = {}
        for kind in dict.fromkeys(instance.request_type for instance in instances):
            places = [place for place, instance in enumerate(instances) if instance.request_type == kind]
            asked = [instances[place] for place in places]
            sides = [self._ask(hflm, kind, asked) for hflm in (self.everything, self.within)]
            for place, reply, reply_within in zip(places, *sides, strict=True):
                request = encoded[place]
                if isinstance(request, Scored):
                    answers[place] = Answer(_score(reply, reply_within), request.tokens, request.cut)
                else:
                    answers[place] = Generation(str(reply), str(reply_within), request.cut)
            self.report(len(answers))
        return [answers[place] for place in range(len(instances))]

    def _unanswerable(self, instance: Instance, continuation_cut: bool) -> str:
        if continuation_cut:
            return "its continuation is longer than the model's input, where HFLM stops; raise `max_length`"
        if instance.request_type != "generate_until":
            return ""
        if instance.args[1].get("do_sample"):
            return "its text is drawn at random, and not by HFLM's noise; remove the benchmark"
        if self.encoding.end not in whole_tokens(self.encoding):
            return "HFLM only generates up to an end of text, and none of the tokenizer's added tokens is `end_of_text`"
        return ""

    def _ask(self, hflm: HFLM, kind: str, asked: list[Instance]) -> Sequence[Any]:
        try:
            with quiet(), offline():
                replies: Sequence[Any] = getattr(hflm, kind)(asked, disable_tqdm=True)
        except (EvalsvcError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # any error that stops another program
            raise InvalidData(
                f"benchmark {asked[0].task_name!r}: lm-eval's HFLM stopped with {type(error).__name__}: "
                f"{one_line(error)}; use the engine evalsvc for `scoring`"
            ) from None
        return replies


def _score(reply: Any, within: Any) -> Score:
    (logprob, greedy), (logprob_within, greedy_within) = (
        (float(side[0]), bool(side[1])) if isinstance(side, tuple) else (float(side), False) for side in (reply, within)
    )
    return Score(logprob, greedy, logprob_within, greedy_within, math.nan)


class Logits(nn.Module):
    """A language model with the interface that HFLM needs of a model of transformers."""

    rows: Tensor  # [V] int64
    left_out: Tensor  # [V] bool

    def __init__(self, model: LanguageModel, rows: Sequence[int], allowed: Sequence[range] | None) -> None:
        """Give the model's logits of `rows`, -inf for rows that are not `allowed`."""
        super().__init__()
        self._model = (model,)  # in a tuple, since HFLM would move a module's weights
        self.config = PretrainedConfig()
        self.register_buffer("rows", torch.tensor(list(rows), device=model.device))
        left_out = [allowed is not None and not any(row in part for part in allowed) for row in rows]
        self.register_buffer("left_out", torch.tensor(left_out, device=model.device))

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def tie_weights(self) -> None:
        """Do nothing, because the model has already tied its tables."""

    @torch.inference_mode()
    def forward(self, ids: Tensor) -> SimpleNamespace:  # [B, T] int64
        logits = self._model[0].logits(self.rows[ids])[..., self.rows]
        return SimpleNamespace(logits=logits.masked_fill_(self.left_out, -torch.inf))

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Tensor,  # [B, T] int64
        attention_mask: Tensor,  # [B, T]
        max_length: int,
        stopping_criteria: Callable[[Tensor, Any], Any],
        **_: object,
    ) -> Tensor:  # [B, S] int64
        """Return the prompts with the likeliest ids after them, each computed without a cache."""
        ids, mask = input_ids, attention_mask.bool()
        while ids.shape[1] < max_length:
            positions = (mask.cumsum(1) - 1).clamp(min=0)
            hidden = self._model[0].hidden(self.rows[ids], mask=mask, positions=positions)[:, -1]
            logits = self._model[0].head(hidden, self.rows).masked_fill_(self.left_out, -torch.inf)
            likeliest = logits.argmax(1, keepdim=True)
            ids, mask = torch.cat([ids, likeliest], 1), torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            if bool(torch.as_tensor(stopping_criteria(ids, None)).all()):
                break
        return ids


def build_hflm(model: LanguageModel, encoding: TextEncoding, *, within: bool = False) -> HFLM:
    """Return an HFLM that reads text as `encoding` does, with the text's rows first, or only these if `within`."""
    prefix, text = encoding.end if encoding.bos is None else encoding.bos, encoding.layout.text_ids
    others = () if within else (row for row in range(encoding.layout.rows or 0) if row not in text)
    with quiet():  # HFLM warns about every model that is not a path
        return HFLM(
            Logits(model, [*text, *others], encoding.drawn_from_within if within else encoding.drawn_from),
            backend="causal",
            tokenizer=_tokenizer(encoding),
            max_length=encoding.max_length,
            batch_size=BATCH,
            add_bos_token=encoding.bos is not None,
            prefix_token_id=0 if prefix is None else prefix,  # without a prefix, no context is empty
            logits_cache=False,  # with the cache, some requests of version 0.4.13 get log-likelihoods of others
        )


def whole_tokens(encoding: TextEncoding) -> dict[int, str]:
    """Return the tokenizer's added tokens by id, which it finds in a text before any others."""
    content = json.loads(encoding.tokenizer.to_json())
    return {token["id"]: token["content"] for token in content["added_tokens"]}


def _tokenizer(encoding: TextEncoding) -> PreTrainedTokenizerFast:
    """Return the tokenizer for transformers. A role turns a token into an added token, so only those get roles."""
    kind: type[PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    content = json.loads(encoding.tokenizer.to_json())
    if encoding.bos is not None:
        text = [{"SpecialToken": {"id": "first", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        content["post_processor"] = {
            "type": "TemplateProcessing",
            "single": text,
            "pair": [*text, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"first": {"id": "first", "ids": [encoding.bos], "tokens": ["first"]}},
        }
    whole = whole_tokens(encoding)
    roles = {"bos_token": encoding.bos, "eos_token": encoding.end, "pad_token": encoding.end}
    return kind(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        clean_up_tokenization_spaces=False,
        **{role: whole[token] for role, token in roles.items() if token in whole},
    )
