"""Schema of a benchmark's YAML file that a `submitter` may write: a closed list of keys and kinds of values.

Anyone who may post a suite may have written such a file, or may name another person's file. So every key that is not
listed is refused, whether or not it would run code, and no refusal quotes a value. lm-eval's documentation explains the
keys: https://github.com/EleutherAI/lm-evaluation-harness/blob/main/docs/task_guide.md.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from evalsvc.errors import InvalidData, UnknownName

BUILDERS = ("json", "csv", "parquet")
"""Values of `dataset_path` for local files; any other value is the name of a dataset on the hub."""

ALLOW = "or have the operator set EVALSVC_ALLOW_BENCHMARK_CODE=1"

_CODE = (
    "class",
    "custom_dataset",
    "process_docs",
    "process_results",
    "unsafe_code",
    "trust_remote_code",
    "hf_evaluate",
)
"""Keys that are refused as `runs code`; every other unlisted key is unknown."""

Text = Annotated[str, Field(max_length=100_000)]


def _compiled(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        raise ValueError("it is no regular expression") from None
    return pattern


Pattern = Annotated[str, Field(max_length=10_000), AfterValidator(_compiled)]
"""Regular expression, which lm-eval compiles at the first answer."""

Name = Annotated[str, Field(max_length=256)]

# fmt: off
Metric = Literal["acc", "acc_all", "acc_bytes", "acc_mutual_info", "acc_norm", "bits_per_byte", "bleu", "brier_score",
                 "bypass", "byte_perplexity", "chrf", "chrf++", "exact_match", "f1", "likelihood", "mcc", "perplexity",
                 "ter", "word_perplexity"]
"""Metrics that lm-eval computes itself. Any other name is a metric of the library evaluate, which is a program."""

Aggregation = Literal["bits_per_byte", "bleu", "brier_score", "bypass", "chrf", "chrf++", "f1", "matthews_corrcoef",
                      "mean", "median", "nanmean", "perplexity", "ter", "weighted_perplexity"]

Filter = Literal["format_span", "lowercase", "majority_vote", "map", "multi_choice_regex", "regex", "regex_pos",
                 "remove_whitespace", "take_first", "take_first_k", "uppercase"]
"""lm-eval's filters except `custom`, which calls a function."""
# fmt: on


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DatasetOptions(_Closed):
    data_files: Name | list[Name] | dict[Name, Name | list[Name]] | None = None
    trust_remote_code: Literal[False] | None = None


class GenerationOptions(_Closed):
    until: Text | list[Text] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    num_beams: int | None = None
    max_gen_toks: int | None = Field(None, le=1 << 20)
    max_new_tokens: int | None = Field(None, le=1 << 20)


class MetricEntry(_Closed):
    metric: Metric
    aggregation: Aggregation | None = None
    higher_is_better: bool | None = None
    ignore_case: bool | None = None
    ignore_numbers: bool | None = None
    ignore_punctuation: bool | None = None
    regexes_to_ignore: list[Pattern] | None = None
    average: Name | None = None
    weight_by_size: bool | None = None
    hf_evaluate: Literal[False] | None = None


class GroupMetric(_Closed):
    metric: Name
    aggregation: Literal["mean"] | None = None
    weight_by_size: bool | None = None
    filter_list: Name | list[Name] | None = None


class FilterStep(_Closed):
    function: Filter
    regex_pattern: Pattern | None = None
    group_select: int | None = None
    fallback: Text | None = None
    ignore_case: bool | None = None
    ignore_punctuation: bool | None = None
    regexes_to_ignore: list[Pattern] | None = None
    k: int | None = Field(None, ge=1, le=4096)
    mapping_dict: dict[str | int, Text | int | float | bool | None] | None = None
    default_value: Text | int | float | bool | None = None


class FilterChain(_Closed):
    name: Name
    filter: list[FilterStep]


class FewshotOptions(_Closed):
    sampler: Literal["default", "first_n"] | None = None
    split: Name | None = None
    samples: list[dict[Name, JsonValue]] | None = None
    fewshot_indices: list[int] | None = None
    doc_to_text: Text | None = None
    doc_to_target: Text | int | list[Text] | None = None
    doc_to_choice: Text | list[Text] | dict[Name, Text] | None = None
    gen_prefix: Text | None = None
    fewshot_delimiter: Text | None = None
    target_delimiter: Text | None = None


class BenchmarkFile(_Closed):
    """File that defines a benchmark, a group, or a part that other files include."""

    include: Name | list[Name] | None = None
    group: Name | None = None
    group_alias: Name | None = None
    aggregate_metric_list: GroupMetric | list[GroupMetric] | None = None
    task: Name | list[Name | BenchmarkFile] | None = None
    task_alias: Name | None = None
    tag: Name | list[Name] | None = None
    dataset_path: Name | None = None
    dataset_name: Name | None = None
    dataset_kwargs: DatasetOptions | None = None
    training_split: Name | None = None
    validation_split: Name | None = None
    test_split: Name | None = None
    fewshot_split: Name | None = None
    output_type: Literal["loglikelihood", "loglikelihood_rolling", "multiple_choice", "generate_until"] | None = None
    doc_to_text: Text | int | None = None
    doc_to_target: Text | int | list[Text] | None = None
    doc_to_choice: Text | list[Text] | dict[Name, Text] | None = None
    doc_to_decontamination_query: Text | None = None
    should_decontaminate: bool | None = None
    description: Text | None = None
    gen_prefix: Text | None = None
    target_delimiter: Text | None = None
    fewshot_delimiter: Text | None = None
    fewshot_config: FewshotOptions | None = None
    num_fewshot: int | None = Field(None, ge=0, le=1024)
    repeats: int | None = Field(None, ge=1, le=1024)
    generation_kwargs: GenerationOptions | None = None
    filter_list: list[FilterChain] | None = None
    metric_list: list[MetricEntry] | None = None
    unsafe_code: Literal[False] | None = None
    metadata: dict[Name, JsonValue] | None = None


def by_split(files: object) -> dict[str, list[str]]:
    splits = files if isinstance(files, dict) else {"train": files}
    return {
        str(split): [str(name) for name in (names if isinstance(names, list) else [names])]
        for split, names in splits.items()
    }


def check_benchmark_file(where: str, content: object) -> dict[str, object]:
    """Return a file's content as plain values of the kinds above; `where` names the file in messages."""
    try:
        return BenchmarkFile.model_validate(content).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise InvalidData(f"{where}: {_first_problem(error)}") from None


def _first_problem(error: ValidationError) -> str:
    """Describe a key and the problem of its value; for values of several possible kinds, the deepest problem."""
    problem = max(error.errors(include_url=False, include_input=False), key=lambda item: len(item["loc"]))
    unknown = problem["type"] == "extra_forbidden"
    *above, last = problem["loc"] or ("the file",)
    # pydantic puts the attempted kinds of value between the keys.
    places = [part for part in above if isinstance(part, int) or part in _KEYS]
    known = next((_BELOW[part] for part in reversed(places) if part in _BELOW), BenchmarkFile).model_fields
    places += [last] if unknown or isinstance(last, int) or last in _KEYS or not places else []
    place = ".".join(str(part) if _SHOWN.fullmatch(str(part)) else "…" for part in places)
    if last in _CODE and problem["type"] in ("extra_forbidden", "literal_error"):
        return f"`{place}` runs code, which a benchmark file may not; remove it, {ALLOW}"
    if unknown:
        near = UnknownName.among("key", str(last), known).message if place.endswith(str(last)) else "no such key"
        return f"`{place}`: {near}; remove it, {ALLOW}"
    text = str(problem["msg"]).removeprefix("Value error, ")
    return f"`{place}`: {text[:1].lower()}{text[1:]}; correct it{f', {ALLOW}' if last in _PROGRAMS else ''}"


_SHOWN = re.compile(r"[A-Za-z_]\w{0,39}|\d{1,6}")
"""Pattern of names that look like keys. Others are not shown: the file may hold another person's secret."""

_BELOW: dict[object, type[_Closed]] = {
    "aggregate_metric_list": GroupMetric,
    "dataset_kwargs": DatasetOptions,
    "fewshot_config": FewshotOptions,
    "filter": FilterStep,
    "filter_list": FilterChain,
    "generation_kwargs": GenerationOptions,
    "metric_list": MetricEntry,
}
"""Models of nested mappings, by the key that holds them."""

_PROGRAMS = ("metric", "aggregation", "function")
"""Keys whose unlisted values name a program."""

_KEYS = frozenset(BenchmarkFile.model_fields).union(*(model.model_fields for model in _BELOW.values()))
