"""Make training data for open_lm from images and captions; benchmarks/prepare/README.md has examples.

    python benchmarks/prepare_data.py SOURCE --decoder NAME --layout FILE --output FOLDER

`prepare/preparation.py` has the two stages: images become codes, and captions and codes become sequences in shards.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from evalsvc.assets import ASSETS
from evalsvc.cli.lazy_group import _Context, _with_value
from evalsvc.cli.options import WRONG_USE, Device, Threads, local_settings
from evalsvc.cli.progress import show_bars
from evalsvc.cli.terminal import complain, say, warn
from evalsvc.cli.weights import read_layout
from evalsvc.config import guard_processes
from evalsvc.errors import EvalsvcError, InvalidRequest
from evalsvc.spec.images import Crop, Filter
from evalsvc.spec.layout import VocabularyLayout, parse_layout

if TYPE_CHECKING:
    from prepare.preparation import Prepared


class PlainCommand(TyperCommand):
    """Command that is a program of its own, with the help and the errors of the commands of `evalsvc`."""

    context_class = _Context

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        """Make the context in which the command runs. An option with a wrong value is told with this value."""
        try:
            return super().make_context(*arguments, **options)
        except typer.BadParameter as error:
            error.message = _with_value(error)
            raise


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SHOWN_REASONS = 10
"""Most reasons that are printed; `prepare.json` has all of them."""

Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A folder of images with a .txt file each; captions as COCO annotations, .jsonl or .csv; a .tar file of "
        "WebDataset, or a folder of such files.",
    ),
]
Output = Annotated[Path, typer.Option("--output", help="Folder to write the shards to, or to go on in.")]
Decoder = Annotated[str, typer.Option(help="Image tokenizer: an asset such as movqgan-67M, or its file or folder.")]
DecoderConfig = Annotated[
    str | None,
    typer.Option(
        help="Configuration of the decoder: a name such as movqgan-67M, or a file.", show_default="next to the decoder"
    ),
]
DecoderEma = Annotated[bool, typer.Option("--decoder-ema", help="Use the averaged weights of the decoder.")]
Layout = Annotated[str, typer.Option(help="Vocabulary layout: a preset's name, a YAML or JSON file, or JSON.")]
Tokenizer = Annotated[Path | None, typer.Option(help="File tokenizer.json.", show_default="that of the layout")]
Images = Annotated[
    Path | None, typer.Option(help="Folder of the images that a file of captions names.", show_default="none")
]
Size = Annotated[
    int | None, typer.Option(min=2, max=4096, help="Side of the images in pixels.", show_default="the decoder's")
]
CropOption = Annotated[Crop, typer.Option(help="Crop of the images, as in the tasks.")]
FilterOption = Annotated[Filter, typer.Option("--filter", help="Filter of the resampling, as in the tasks.")]
Records = Annotated[
    int | None,
    typer.Option(min=2, help="Ids of a record: the layout's length, or one more.", show_default="the layout's length"),
]
ShardSize = Annotated[
    int, typer.Option(min=1, max=100_000, help="Most sequences of a shard; all shards are about equal.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the order, and of the images that are held out.")]
HeldOut = Annotated[int, typer.Option(min=0, help="Images to hold out for evaluation, with all their captions.")]
Codes = Annotated[
    Path | None, typer.Option(help="Folder of codes that several outputs share.", show_default="in the output")
]


@app.command(cls=PlainCommand)
def prepare_data(
    source: Source,
    output: Output,
    decoder: Decoder,
    layout: Layout,
    tokenizer: Tokenizer = None,
    images: Images = None,
    decoder_config: DecoderConfig = None,
    decoder_ema: DecoderEma = False,
    size: Size = None,
    crop: CropOption = "center",
    filter_: FilterOption = "lanczos",
    records: Records = None,
    shard_size: ShardSize = 8192,
    seed: Seed = 0,
    held_out: HeldOut = 0,
    codes: Codes = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Make training data for open_lm from images and captions.

    Images are cropped and encoded, captions are tokenized, and both become sequences of the layout in shards that
    open_lm reads with --data-key json.gz. After an interruption, the same command goes on. Captions and images that
    cannot be used are left out, with their reasons in refused.jsonl.
    """
    settings = local_settings(device, threads)
    parsed = parse_layout(read_layout(layout))
    path = _tokenizer(tokenizer, parsed)
    # PyTorch takes seconds to import and is not on every machine; `--help` and a mistyped option need no PyTorch.
    from prepare.preparation import Request, prepare

    request = Request(
        source=source,
        output=output,
        decoder=_decoder(decoder),
        tokenizer=path,
        layout=parsed,
        images=images,
        decoder_config=decoder_config,
        decoder_ema=decoder_ema,
        size=size,
        crop=crop,
        filter=filter_,
        records=records,
        shard_size=shard_size,
        seed=seed,
        held_out=held_out,
        codes=codes,
    )
    with show_bars() as bars:
        prepared = prepare(request, settings, bars.show)
    for name in prepared.damaged:
        warn(f"the file of codes {name} is damaged; its images were encoded again, remove the file")
    for line in _summary(prepared, output):
        say(line)


def _tokenizer(tokenizer: Path | None, layout: VocabularyLayout) -> Path:
    if tokenizer is not None:
        return tokenizer
    if layout.text.tokenizer is None:
        raise InvalidRequest("the layout names no tokenizer; give --tokenizer, the file tokenizer.json")
    return Path(layout.text.tokenizer)


def _decoder(decoder: str) -> str:
    """Return the name of an asset, or an absolute path."""
    is_path = "/" in decoder or (decoder not in ASSETS and Path(decoder).exists())
    return str(Path(decoder).absolute()) if is_path else decoder


def _summary(prepared: Prepared, output: Path) -> list[str]:
    """Return what was written and left out, and how open_lm reads the data."""
    sheet, encoded = prepared.datasheet, prepared.encoded
    pairs, images, open_lm = sheet.pairs, sheet.images, sheet.open_lm
    lines = [
        f"{pairs.training:,} sequences of {open_lm.seq_len + 1:,} ids in {len(sheet.shards):,} shards, of "
        f"{images.training:,} images",
        f"{pairs.held_out:,} pairs of {images.held_out:,} images are held out",
        f"{encoded.encoded:,} images were encoded now, {encoded.rate:.3g} a second",
        f"{sheet.captions.cut:,} captions were cut to {sheet.captions.room:,} ids",
    ]
    if sheet.refused:
        lines.append(
            f"{sum(sheet.refused.values()):,} captions or images were left out, see {output / 'refused.jsonl'}:"
        )
        lines += [f"  {count:,}: {reason}" for reason, count in list(sheet.refused.items())[:SHOWN_REASONS]]
    return [
        *lines,
        f"open_lm: a model with seq_len {open_lm.seq_len} and vocab_size {open_lm.vocab_size} or more, and",
        f"  --dataset-manifest {output / 'manifest.jsonl'} --data-key json.gz "
        f"--target-mask-individual {open_lm.target_mask_individual}",
    ]


def main() -> NoReturn:
    """Run the program. Print errors of evalsvc as one line, and exit with code 2."""
    guard_processes()
    try:
        app(prog_name="prepare_data.py")
    except EvalsvcError as error:
        complain(f"{error.message} [{error.code}]")
        sys.exit(WRONG_USE)
    sys.exit(0)


if __name__ == "__main__":
    main()
