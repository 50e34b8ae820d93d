"""What a real language model forgets while it learns images: a training on captioned digits, evaluated by the service.

Widens the Llama in a Hugging Face folder by the miniature's 64 image rows, continues it on the miniature's captioned
digits, posts the kept checkpoints to a service of its own on this machine, and tabulates by step what is left of the
language: benchmarks with 95 % intervals, the change against step 0, completions, and the losses of captions and codes.

    evalsvc assets pull smollm2-135m
    python benchmarks/real_forgetting.py --model FOLDER --items FOLDER --work FOLDER [--sample N] [--quick]

`--items` has rows of llm-foundry's `arc_easy.jsonl`, `piqa.jsonl` and `lambada_openai.jsonl`. Everything is in the work
folder: an interrupted run goes on where it stopped when it is started again. Of the folder, `table.md`,
`forgetting.json` and the charts are the result; the checkpoints take 0.5 GB each and may be deleted. Training takes
about six minutes on two cores, and the evaluation of six checkpoints twenty.

`--quick` trains a tiny random Llama for four steps and asks the miniature's questions: it shows that the benchmark
works. The last line of the output is one JSON document; `ratios` is empty, since there is no peer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from continued_llama import RECIPE, Record, checkpoint_folder, kept_steps, read_pairs, read_texts, train
from forgetting_table import CHARTS, Table, read_table
from side_by_side import machine, print_last_line
from tiny_llama import write_tiny_llama
from widened_llama import LAYOUT

from evalsvc.client import Client
from evalsvc.miniature import ROOT

sys.path.append(str(Path(__file__).parent / "paper"))
from study.own_service import Workers, started_service

RUN, SUITE = "continued", "real-forgetting"
BENCHMARKS = ("arc_easy", "piqa", "lambada_openai")


@dataclass(frozen=True)
class Plan:
    """The training, and the questions to its checkpoints."""

    model: Path
    recipe: Mapping[str, Any]
    benchmarks: Sequence[Mapping[str, str]]
    include_path: Sequence[str]
    sample: int
    """Number of questions of each benchmark."""
    texts: int
    """Number of passages of text, and of captioned images."""
    max_tokens: int
    """Maximum number of tokens of a completion."""

    def suite(self, work: Path) -> dict[str, Any]:
        """Return the suite that every checkpoint is evaluated with."""
        forgetting = {
            "kind": "forgetting",
            "benchmarks": list(self.benchmarks),
            "include_path": list(self.include_path),
            "sample": self.sample,
            "text": str(work / "text.jsonl"),
            "text_limit": self.texts,
            "shard_size": 128,
        }
        pairs = {"kind": "loss", "name": "pairs", "data": str(work / "pairs.jsonl"), "limit": self.texts}
        completions = {"kind": "completions", "max_tokens": self.max_tokens, "samples": 0}
        return {"tasks": [forgetting, pairs, completions]}


def real_plan(model: Path, items: Path, sample: int) -> Plan:
    benchmarks = [{"name": name, "data": str(items.resolve() / f"{name}.jsonl")} for name in BENCHMARKS]
    return Plan(model, RECIPE, benchmarks, (), sample, texts=100, max_tokens=48)


def quick_plan(work: Path) -> Plan:
    write_tiny_llama(work / "tiny")
    recipe = {**RECIPE, "steps": 4, "checkpoint_steps": [0, 2], "learning_rate": 1e-2, "warm_up": 1}
    return Plan(work / "tiny", recipe, [{"name": "cloze"}], (str(ROOT),), sample=20, texts=8, max_tokens=8)


def write_data(work: Path) -> None:
    """Write the miniature's held-out text and pairs as text, for the tokenizer of another model."""
    texts = [{"text": text} for text in read_texts("heldout_text.jsonl")]
    pairs = [{"text": text, "image_codes": codes} for text, codes in read_pairs("heldout_pairs.jsonl")]
    for name, records in (("text", texts), ("pairs", pairs)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def evaluate(client: Client, plan: Plan, work: Path) -> None:
    """Post every checkpoint, and wait. Checkpoints that an earlier run has evaluated are not evaluated again."""
    client.put_suite(SUITE, plan.suite(work))
    posted = {}
    for step in kept_steps(plan.recipe):
        folder = checkpoint_folder(work, step)
        posted[step] = client.submit(RUN, step, str(folder), suites=[SUITE], layout=str(work / LAYOUT))
    for step, checkpoint in posted.items():
        for evaluation in checkpoint.evaluations:
            done = client.wait(evaluation.id)
            if done.state != "succeeded":
                raise SystemExit(f"the evaluation of step {step} {done.state}: {done}")
            print(f"step {step} is evaluated", flush=True)


def draw_charts(client: Client, metrics: Sequence[str], work: Path) -> list[Path]:
    """Draw the charts of the metrics by `evalsvc plot`."""
    drawn = []
    for metric in metrics:
        path = work / f"{metric.replace('/', '-')}.svg"
        options = ["--metric", metric, "--output", str(path), "--url", client.url]
        subprocess.run([sys.executable, "-P", "-m", "evalsvc.cli", "plot", RUN, *options], check=True)
        drawn.append(path)
    return drawn


def run(plan: Plan, work: Path, threads: int | None) -> tuple[Record, Table]:
    record = train(plan.model, work, plan.recipe)
    write_data(work)
    with started_service(work / "service", Workers(1, threads)) as client:
        evaluate(client, plan, work)
        table = read_table(client, RUN, [spec["name"] for spec in plan.benchmarks])
        draw_charts(client, [name for name in CHARTS if table.has(name)], work)
    (work / "table.md").write_text(table.markdown())
    (work / "forgetting.json").write_text(json.dumps(document(plan, record, table), indent=1) + "\n")
    return record, table


def document(plan: Plan, record: Record, table: Table) -> dict[str, Any]:
    """Return the content of `forgetting.json` and of the last line."""
    training = {"seconds": record.seconds, "threads": record.threads, "losses": record.losses}
    return {
        "machine": machine(),
        "recipe": dict(plan.recipe),
        "training": training,
        "sample": plan.sample,
        **table.to_json(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps: shows that it works")
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a Llama, with its tokenizer.json")
    parser.add_argument("--items", type=Path, help="folder of the benchmarks' rows")
    parser.add_argument("--work", type=Path, help="folder of everything that is written [a temporary one]")
    parser.add_argument("--sample", type=int, default=300, help="questions of each benchmark [300]")
    parser.add_argument("--threads", type=int, help="threads of the worker [all]")
    parser.add_argument("--train-only", action="store_true", help="stop after the training")
    options = parser.parse_args()
    if not options.quick and not (options.model and options.items and options.work):
        parser.error("give --model, --items and --work; or --quick")
    with tempfile.TemporaryDirectory() as temporary:
        work = (options.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        plan = quick_plan(work) if options.quick else real_plan(options.model, options.items, options.sample)
        print(f"machine   {machine()}\nwork      {work}", flush=True)
        if options.train_only:
            train(plan.model, work, plan.recipe)
            return
        record, table = run(plan, work, options.threads)
        print(table.markdown())
        print_last_line("real_forgetting", {}, **document(plan, record, table))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
