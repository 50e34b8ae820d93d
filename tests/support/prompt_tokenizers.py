"""Small tokenizers of published models: their special tokens, in their order and with their pre-tokenization.

The ids of the prompts in tests are those that the authors' own code computed with the same tokenizers.
"""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CODES = 64
"""Codes of Liquid, SimpleAR and Chameleon; those of Emu3 and Janus are 48."""

WORDS = "a red blue dog cat on the grass image of Generate an based this description The caption is highly realistic"
CAPTIONS = ("a red dog on the grass", "blue cat, the cat.", "a dog ")
SHIBA = ("a shiba inu", "a portrait of young girl.", "two red cubes (on a blue table)")
NEGATIVE = "lowres, bad anatomy, bad hands, text, error, worst quality, low quality, blurry."
TEXT = [*SHIBA, NEGATIVE, " masterpiece, film grained, best quality.", "User: Assistant: 0123456789*"] * 4

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", "<boi>", "<eoi>", "<unconditional>")
SIMPLEAR = ("<|t2i|>", "<|i2t|>", "<|soi|>", "<|vtokens|>", "<|t2v|>", "<|v2t|>", "<|sov|>")
IMAGE_NAMES = tuple(f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(code))}Z" for code in range(CODES))
RESERVED = ("<eoss>", "<racm3:break>", "<reserved08706>", "<image>", "<reserved08799>", "<reserved08804>")
CHAMELEON = ("<s>", "<pad>", "</s>", "<unk>", *IMAGE_NAMES, *RESERVED)
EMU3 = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{number}|>" for number in range(205))),
    *("<|image token|>", "<|image start|>", "<|image end|>", *(f"<|visual token {code:06d}|>" for code in range(48))),
)
JANUS = (
    *("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<begin_of_image>", "<end_of_image>"),
    *("<image_placeholder>", "<|User|>", "<|Assistant|>"),
)


def by_hand(first: Sequence[str], special: Sequence[str], byte_level: bool) -> Tokenizer:
    """Make a BPE whose first ids are `first`, with merges that build each word from the left; nothing is trained."""
    space = "\u0120" if byte_level else "\u2581"
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else [space, *map(chr, range(33, 127))]
    words = [space * 2, *(space + word for word in WORDS.split()), "a", "red"]
    merges = list(dict.fromkeys((word[:i], word[i]) for word in words for i in range(1, len(word))))
    names = list(dict.fromkeys([*first, *alphabet, *(left + right for left, right in merges)]))
    unknown = "<unk>" if "<unk>" in names else None
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges, unk_token=unknown))
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer.normalizer = normalizers.Replace(" ", space)
        tokenizer.decoder = decoders.Replace(space, " ")
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def trained(special: Sequence[str]) -> Tokenizer:
    """Train a byte-level BPE of 320 ids with Qwen's pre-tokenization; `special` follow."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(QWEN), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return tokenizer


def marked(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith("<")]


def write_tokenizer(family: str, folder: Path) -> Path:
    """Write the `tokenizer.json` of liquid, simplear, chameleon, emu3 or janus."""
    if family == "liquid":
        tokenizer = by_hand(GEMMA, marked(GEMMA), byte_level=False)
    elif family == "simplear":
        tokenizer = by_hand([], ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *SIMPLEAR], byte_level=True)
    elif family == "chameleon":
        tokenizer = by_hand(CHAMELEON, marked(CHAMELEON), byte_level=False)
    else:
        tokenizer = trained({"emu3": EMU3, "janus": JANUS}[family])
    path = folder / f"{family}.json"
    tokenizer.save(str(path))
    return path
