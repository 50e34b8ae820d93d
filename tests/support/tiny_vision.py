"""Small vision networks with random weights, in folders as the library writes them. The library is imported where it is
used: it takes seconds, in each process that collects tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, END = "<|startoftext|>", "<|endoftext|>"
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def write_clip(folder: Path) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokenizer = letters()
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    text = {**SHAPE, "vocab_size": end + 1, "max_position_embeddings": 12, "eos_token_id": end, "bos_token_id": end - 1}
    vision = {**SHAPE, "image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def letters() -> Tokenizer:
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), START, END]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = (tokenizer.token_to_id(word) for word in (START, END))
    tokenizer.post_processor = processors.RobertaProcessing((END, end), (START, start), False, False)
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def write_dinov2(folder: Path) -> Path:
    from transformers import CLIPImageProcessor, Dinov2Config, Dinov2Model

    torch.manual_seed(1)
    shape = {key: value for key, value in SHAPE.items() if key != "intermediate_size"}
    Dinov2Model(Dinov2Config(**shape, image_size=56, patch_size=14)).save_pretrained(folder)
    how = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    CLIPImageProcessor(**how, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]).save_pretrained(folder)
    return folder


def write_lpips(folder: Path) -> Path:
    """The files of LPIPS with random weights; as published, the first has a classifier that is not needed."""
    from torchvision.models import vgg

    torch.manual_seed(2)
    features = vgg.make_layers(vgg.cfgs["D"]).state_dict()
    weights = {f"features.{name}": tensor for name, tensor in features.items()} | {"classifier.6.bias": torch.zeros(9)}
    torch.save(weights, folder / "vgg16-397923af.pth")
    channels = (64, 128, 256, 512, 512)
    torch.save({f"lin{n}.model.1.weight": torch.rand(1, c, 1, 1) for n, c in enumerate(channels)}, folder / "vgg.pth")
    return folder
