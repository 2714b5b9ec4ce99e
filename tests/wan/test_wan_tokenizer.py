"""Tokenizers read by the `tokenizers` library alone give what transformers gives, text by text, in every layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoTokenizer, T5Tokenizer

from helpers.tiny import tiny_sentencepiece, tiny_tokenizer
from wanscope.errors import ModelError
from wanscope.prompt.tokens import count_tokens, token_columns, unknown_words
from wanscope.wan import tokenizer_files
from wanscope.wan.locate import Part
from wanscope.wan.tokenizer import load_tokenizer, read_tokenizer, text_length_of
from wanscope.wan.tokenizer_files import TextTokenizer
from wanscope.wan.variants import MARBLES_WEIGHTS, VARIANTS

TEXTS = (
    "",
    "a",
    "a red circle moves left",
    "A Red Circle moves LEFT.",
    "the cat, the dog: and 12.5% of “quotes”",
    "großer BÄR ﬁne ①②  Ａ full width",  # ligatures, circled digits and wide letters, which the charsmap folds
    "sunflower qzx \U0001f642 漢字 がぎ е́",
    "a </s> b <unk><pad> c <extra_id_0> d <extra_id_1>e <mine>f <loud> g",
    "left▁right ▁ x",
    "tab\tnew\nline",
    "wordwithoutspaces" * 8,
)


@pytest.fixture(scope="module")
def spiece() -> bytes:
    return tiny_sentencepiece()


def same(folder: Path) -> TextTokenizer:
    """The tokenizer in `folder`, found equal to transformers', and read without it."""
    ours, theirs = tokenizer_files.from_folder(folder), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert ours is not None
    compare(ours, theirs)
    return ours


def compare(ours: Any, theirs: Any) -> None:
    options: dict[str, Any] = {"add_special_tokens": True, "return_offsets_mapping": True, "verbose": False}
    assert ours.is_fast and ours.unk_token_id == theirs.unk_token_id
    assert text_length_of(ours) == text_length_of(theirs)
    for text in TEXTS:
        mine, wanted = ours(text, **options), theirs(text, truncation=False, **options)
        assert mine["input_ids"] == wanted["input_ids"], text
        assert mine["offset_mapping"] == [tuple(pair) for pair in wanted["offset_mapping"]], text
        assert ours.convert_ids_to_tokens(mine["input_ids"]) == theirs.convert_ids_to_tokens(wanted["input_ids"])
        assert unknown_words(ours, text) == unknown_words(theirs, text)
    words = ("red", "circle", "red circle")
    assert token_columns(ours, TEXTS[2], words) == token_columns(theirs, TEXTS[2], words)


def t5_folder(folder: Path, data: bytes, edit: Callable[[dict[str, Any]], Any] = lambda config: None) -> Path:
    """A tokenizer folder as transformers writes one of the T5 family, its config changed by `edit`."""
    source = folder / "source"
    source.mkdir(parents=True)
    (source / "spiece.model").write_bytes(data)
    T5Tokenizer.from_pretrained(source, model_max_length=77, extra_ids=3).save_pretrained(folder)
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text())
    edit(config)
    config_file.write_text(json.dumps(config))
    return folder


def test_marbles() -> None:
    folder = MARBLES_WEIGHTS / "tokenizer"
    tokenizer = same(folder)
    assert text_length_of(tokenizer) == VARIANTS["marbles"].text_length
    assert count_tokens(tokenizer, "a red circle") == 4 and unknown_words(tokenizer, "a red elephant") == ["elephant"]


def test_a_tokenizer_saved_by_the_tests(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    same(tmp_path)


def test_t5_as_transformers_writes_it(tmp_path: Path, spiece: bytes) -> None:
    tokenizer = same(t5_folder(tmp_path, spiece))
    assert tokenizer("a red circle")["input_ids"][-1] == 1 and text_length_of(tokenizer) == 77


def hub_style(config: dict[str, Any]) -> None:
    """As UMT5's config on the hub: flags of every special token, the sentinels listed, a number of them."""
    sentinels = [f"<extra_id_{i}>" for i in range(3)]
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    named = {"0": "<pad>", "1": "</s>", "2": "<unk>"}
    config.clear()
    config.update(
        tokenizer_class="T5Tokenizer",
        additional_special_tokens=sentinels,
        added_tokens_decoder={index: {"content": token, **flags} for index, token in named.items()},
        clean_up_tokenization_spaces=True,
        eos_token="</s>",
        extra_ids=3,
        model_max_length=512,
        pad_token="<pad>",
        sp_model_kwargs={},
        unk_token="<unk>",
    )


def with_a_token(**flags: bool) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        hub_style(config)
        config["added_tokens_decoder"]["70"] = {"content": "<loud>", **flags}
        config["extra_special_tokens"] = [*config.pop("additional_special_tokens"), "<mine>"]

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        hub_style,
        lambda config: (hub_style(config), config.pop("additional_special_tokens")),
        lambda config: (hub_style(config), config.update(tokenizer_class="T5TokenizerFast", extra_ids=0)),
        lambda config: (hub_style(config), config.update(tokenizer_class="PreTrainedTokenizerFast")),
        lambda config: (hub_style(config), config.pop("added_tokens_decoder")),
        lambda config: (hub_style(config), config.pop("extra_ids"), config.pop("additional_special_tokens")),
        lambda config: (hub_style(config), config.update(bos_token="<s>", sep_token="</s>", unk_token="<mine>")),
        lambda config: (hub_style(config), config.pop("model_max_length"), config.update(unk_id=0)),
        with_a_token(special=True, normalized=False),
        with_a_token(special=False, normalized=True, lstrip=True, rstrip=True),
        with_a_token(single_word=True, normalized=False),
    ],
)
@pytest.mark.parametrize("whole", [True, False], ids=["tokenizer.json", "spiece.model"])
def test_t5_configs(tmp_path: Path, spiece: bytes, edit: Callable[[dict[str, Any]], Any], whole: bool) -> None:
    folder = t5_folder(tmp_path, spiece, edit)
    kind = json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"]
    if not whole:
        (folder / "tokenizer.json").unlink()
        (folder / "spiece.model").write_bytes(spiece)
        if kind not in tokenizer_files.T5:
            assert tokenizer_files.from_folder(folder) is None
            return
    same(folder)


def test_special_tokens_in_a_file_of_their_own(tmp_path: Path, spiece: bytes) -> None:
    folder = t5_folder(tmp_path, spiece, lambda config: (hub_style(config), config.pop("added_tokens_decoder")))
    special = {"eos_token": {"content": "</s>", "lstrip": True, "normalized": False}, "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    same(folder)


def test_a_large_vocabulary(tmp_path: Path, spiece: bytes) -> None:
    """transformers treats vocabularies of over 100,000 tokens apart; UMT5's has 256,000."""
    folder = t5_folder(tmp_path, spiece, hub_style)
    data = json.loads((folder / "tokenizer.json").read_text())
    data["model"]["vocab"] += [[f"▁filler{i}", -20.0] for i in range(100_001)]
    (folder / "tokenizer.json").write_text(json.dumps(data))
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() > 100_000
    same(folder)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization_rule_name": "identity"},
        {"user_defined_symbols": ["<mine>", "<extra_id_0>"], "control_symbols": ["<loud>"]},
        {"byte_fallback": False, "split_digits": True, "add_dummy_prefix": False},
    ],
)
def test_a_sentencepiece_model_inside_an_encoder_file(tmp_path: Path, options: dict[str, Any]) -> None:
    data = tiny_sentencepiece(**options)
    tensors = {"shared.weight": torch.zeros(2, 2), "spiece_model": torch.tensor(list(data), dtype=torch.uint8)}
    save_file(tensors, tmp_path / "encoder.safetensors")
    part = Part("file", tmp_path / "encoder.safetensors")
    ours = read_tokenizer(part, 33)
    assert isinstance(ours, TextTokenizer)
    compare(ours, load_tokenizer(part, 33))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, config: config.update(add_prefix_space=True),
        lambda folder, config: config.update(tokenizer_class="LlamaTokenizer"),
        lambda folder, config: config.update(extra_special_tokens={"image_token": "<mine>"}),
        lambda folder, config: config.update(image_token="<mine>"),
        lambda folder, config: config.pop("tokenizer_class"),
        lambda folder, config: (folder / "config.json").write_text('{"model_type": "umt5"}'),
        lambda folder, config: (folder / "added_tokens.json").write_text("{}"),
    ],
)
def test_unknown_tokenizers_are_left_to_transformers(
    tmp_path: Path, spiece: bytes, change: Callable[[Path, dict[str, Any]], Any]
) -> None:
    folder = t5_folder(tmp_path, spiece, hub_style)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    change(folder, config)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert tokenizer_files.from_folder(folder) is None


def test_encoder_files_without_a_tokenizer_or_with_a_damaged_one(tmp_path: Path) -> None:
    part = Part("file", tmp_path / "encoder.safetensors")
    weights = {"shared.weight": torch.zeros(2, 2)}
    for extra, said in (
        ({}, "contains no tokenizer"),
        ({"spiece_model": torch.tensor(list(b"no model"), dtype=torch.uint8)}, "cannot be read"),
    ):
        save_file(weights | extra, part.path)
        for tokenizer in (read_tokenizer, load_tokenizer):
            with pytest.raises(ModelError, match=said):
                tokenizer(part, 33)


def test_read_and_load_agree_on_what_cannot_be_read(tmp_path: Path, spiece: bytes) -> None:
    part = Part("folder", tmp_path / "t")
    for tokenizer in (read_tokenizer, load_tokenizer):
        with pytest.raises(ModelError, match="cannot be loaded"):
            tokenizer(part, 16)
    t5_folder(part.path, spiece, hub_style)
    compare(read_tokenizer(part, 16), load_tokenizer(part, 16))
    (part.path / "tokenizer_config.json").write_text("{")
    for tokenizer in (read_tokenizer, load_tokenizer):
        with pytest.raises(ModelError, match="cannot be loaded"):
            tokenizer(part, 16)
    with pytest.raises(ValueError, match="not a SentencePiece model"):
        tokenizer_files.from_sentencepiece(b"no such thing", 16)
    with pytest.raises(ValueError, match="does not truncate"):
        tokenizer_files.from_sentencepiece(spiece, 16)("a", truncation=True)
