"""The layouts of published models, found with their prompts by a bigram and by tiny models of their families."""

import json
import random
from pathlib import Path

import pytest
import torch
from bigram_witness import BigramWitness
from prompt_tokenizers import write_tokenizer
from tiny_families import tiny_janus, write_theirs
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from evalsvc.checkpoints.reference import CheckpointRef
from evalsvc.config import Settings
from evalsvc.data.tokens import Record, read_tokens
from evalsvc.doctor.layout.checkup import examine, judge
from evalsvc.doctor.layout.search import Search, Sizes, propose
from evalsvc.miniature import ROOT
from evalsvc.spec.layout import VocabularyLayout, parse_layout

PAIRS, TRAINING = 64, 1_397

FAMILIES = {"liquid": "gemma", "simplear": "qwen2", "chameleon": "chameleon", "anole": "chameleon", "emu3": "emu3"}
"""Presets of layouts, and the names of their models in `tiny_families`."""

CODES = {"emu3": 48, "janus": 48}
"""Codes of the presets that have another number than the miniature's 64."""

WHOLE_SEQUENCE = ("simplear", "chameleon", "anole", "emu3")
"""Presets whose authors train on the prompt too; the others train on what follows the prompt."""

STEPS = 400
"""Number of steps of the training of each model, which take half a minute."""


def write_pairs(path: Path, source: str, count: int, codes: int) -> Path:
    """Write pairs of the miniature with their captions as text, and their codes modulo `codes`."""
    tokenizer = Tokenizer.from_file(str(ROOT / "tokenizer.json"))
    with path.open("w") as file:
        for record in read_tokens(ROOT / source).records[:count]:
            text = tokenizer.decode(list(record.text_ids or ())).strip()
            pair = {"text": text, "image_codes": [code % codes for code in record.image_codes or ()]}
            file.write(json.dumps(pair) + "\n")
    return path


def described(preset: str, tokenizer: Path) -> VocabularyLayout:
    """Return a preset at the sizes of its small tokenizer."""
    text, codes = Tokenizer.from_file(str(tokenizer)).get_vocab_size(), CODES.get(preset, 64)
    layout = parse_layout({"preset": preset, "text_size": text, "codebook_size": codes})
    assert layout.image is not None
    return layout.resolve(max(text, layout.image.offset + codes))


def read(layout: VocabularyLayout, pairs: Path, tokenizer: Path) -> tuple[Record, ...]:
    return read_tokens(pairs, tokenizer, layout.text.bos, form=layout.prompt_form).records


def test_a_prompt_whose_tokens_the_tokenizer_has_is_tried_and_found(tmp_path: Path) -> None:
    """Its text is no cost: what stands before the codes is given, and other candidates have less of it."""
    tokenizer = write_tokenizer("simplear", tmp_path)
    truth = described("simplear", tokenizer)
    pairs, training = (
        write_pairs(tmp_path / name, name, count, 64)
        for name, count in (("heldout_pairs.jsonl", PAIRS), ("training_pairs.jsonl", TRAINING))
    )
    witness = BigramWitness.trained(truth, read(truth, training, tokenizer), truth.rows or 0)

    def prompts_of(layout: VocabularyLayout) -> tuple[Record, ...] | None:
        return None if layout.prompt_form is None else read(layout, pairs, tokenizer)

    plain = read_tokens(pairs, tokenizer, "none").records
    sizes = Sizes((truth.text.size,), 64, ())
    candidates, dropped = propose(truth.rows or 0, plain, sizes, {}, prompts_of)
    assert "<boi>, but that is no token of the tokenizer" in dropped["liquid"]
    assert "simplear" not in dropped
    search = Search(witness, plain)
    search.run(candidates)
    findings = judge(search)
    assert findings["best"]["label"] == "simplear (its own)"
    assert VocabularyLayout.model_validate(findings["layout"]) == truth
    assert search.best.ends == [0.0] * PAIRS


def train(model: nn.Module, layout: VocabularyLayout, records: tuple[Record, ...], preset: str) -> None:
    """Train a model of transformers on sequences of the layout."""
    image = layout.image_range or range(0)
    sequences = [torch.tensor(layout.sequence(item.text_ids, item.image_codes).ids) for item in records]
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = random.Random(0)
    for _ in range(STEPS):
        batch = rng.sample(sequences, 16)
        ids = nn.utils.rnn.pad_sequence(batch, batch_first=True)
        lengths = torch.tensor([len(sequence) for sequence in batch])
        wanted = torch.arange(1, ids.shape[1]) < lengths[:, None]
        if preset not in WHOLE_SEQUENCE:
            is_image = (ids >= image.start) & (ids < image.stop)
            wanted &= is_image.long().cummax(1).values[:, 1:].bool()
        logits = logits_of(model, ids[:, :-1], layout)[wanted]
        loss = functional.cross_entropy(logits, ids[:, 1:][wanted])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.requires_grad_(False).eval()


def logits_of(model: nn.Module, ids: Tensor, layout: VocabularyLayout) -> Tensor:  # [B, T, V]
    if model.config.model_type == "chameleon":  # whose own forward leaves images out
        return model.lm_head(model.model(input_ids=ids).last_hidden_state)
    if model.config.model_type != "janus":
        return model(input_ids=ids).logits
    core, text = model.model, layout.text.size
    images = core.generation_aligner(core.generation_embeddings((ids - text).clamp(min=0)))
    rows = torch.where((ids < text)[..., None], core.language_model.embed_tokens(ids.clamp(max=text - 1)), images)
    logits = core.generation_head(core.language_model(inputs_embeds=rows).last_hidden_state)
    return functional.pad(logits, (text, 0), value=-torch.inf)


def write_trained(preset: str, folder: Path, layout: VocabularyLayout, records: tuple[Record, ...]) -> None:
    """Write a model of the preset's family, trained for half a minute, as transformers saves it."""
    torch.manual_seed(0)
    rows = layout.rows or 0
    if preset == "janus":
        model = tiny_janus(layout.text.size, rows - layout.text.size)
    else:
        model = write_theirs(FAMILIES[preset], folder, vocab_size=rows)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.05)
    train(model, layout, records, preset)
    model.save_pretrained(folder)


@pytest.mark.long
@pytest.mark.usefixtures("reference_models")
@pytest.mark.parametrize("preset", [*FAMILIES, "janus"])
def test_the_layout_of_a_trained_model_of_each_family_is_found(preset: str, tmp_path: Path) -> None:
    """Anole's prompt is Chameleon's with one token more, so 16 pairs would not tell the two apart."""
    codes = CODES.get(preset, 64)
    tokenizer = write_tokenizer({"anole": "chameleon"}.get(preset, preset), tmp_path)
    truth = described(preset, tokenizer)
    pairs, training = (
        write_pairs(tmp_path / name, name, count, codes)
        for name, count in (("heldout_pairs.jsonl", PAIRS), ("training_pairs.jsonl", TRAINING))
    )
    write_trained(preset, tmp_path / "model", truth, read(truth, training, tokenizer))
    findings = examine(
        CheckpointRef(path=str(tmp_path / "model")),
        str(pairs),
        Settings(devices="cpu", threads=1),
        lambda _: None,
        codebook_size=codes,
        limit=PAIRS,
        tokenizer=str(tokenizer),
    )
    assert findings["best"]["name"] == preset
    assert findings["decided"]
    assert VocabularyLayout.model_validate(findings["layout"]) == truth
