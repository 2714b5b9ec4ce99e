"""Columns against an independent reference: words tokenized one by one and counted, no offsets involved."""

from __future__ import annotations

import pytest
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5TokenizerFast

from wanscope.errors import ModelError, RecipeError
from wanscope.prompt import Mark, expand
from wanscope.prompt.tokens import (
    check_length,
    clean,
    count_tokens,
    find_words,
    token_columns,
    unknown_words,
)

# "sun|flower", "cir|cle|s" and rarer words are split; "naïve" and "½" change their length when normalized
PIECES = ["▁a", "▁red", "▁sun", "flower", "▁cir", "cle", "s", ",", ".", "▁moves", "猫", "▁dark", "▁blue", "é", "▁the"]
VOCABULARY = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
VOCABULARY += [(piece, -3.0) for piece in PIECES] + [(c, -8.0) for c in "abcdefghijklmnopqrstuvwxyz12⁄&;'"]


def t5() -> T5TokenizerFast:
    """Return a tokenizer as transformers builds UMT5's: split at spaces, with "▁" before each word."""
    return T5TokenizerFast(vocab=VOCABULARY, extra_ids=0)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As the published UMT5 tokenizer.json reads: normalized, spaces become "▁" and count among a word's characters."""
    tokenizer = Tokenizer(models.Unigram(VOCABULARY, 2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>")


TOKENIZERS = {"t5": t5(), "sentencepiece": sentencepiece()}
both = pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)


def marked(template: str) -> tuple[str, tuple[Mark, ...]]:
    (variation,) = expand(template)
    return variation.text, variation.marks


@both
def test_a_word_of_several_tokens_has_several_columns(tokenizer):
    text, marks = marked("a red (sunflower:1.5) moves, (red) (circles)")
    sunflower, red, circles = token_columns(tokenizer, text, marks)
    assert (sunflower.columns, sunflower.pieces) == ((2, 3), ("▁sun", "flower"))
    assert (sunflower.weight, sunflower.weighted, sunflower.spans) == (1.5, True, ((6, 15),))
    assert (red.columns, red.weighted) == ((6,), False)
    assert circles.pieces == ("▁cir", "cle", "s")


@both
def test_a_mark_is_one_occurrence_and_a_word_is_all_of_them(tokenizer):
    text, marks = marked("red a (red) Red, redder")
    assert [found.columns for found in token_columns(tokenizer, text, marks)] == [(2,)]
    (found,) = find_words(tokenizer, text, ["red"])
    assert found.spans == ((0, 3), (6, 9), (10, 13))
    assert set(found.columns) > {0, 2}
    mixed = token_columns(tokenizer, text, [*marks, "a"])
    assert [found.columns for found in mixed] == [(2,), (1,)]


@both
def test_phrases_marks_inside_marks_and_marked_parts_of_words(tokenizer):
    text, marks = marked("the (dark (blue:2) circle), (sun)flower")
    phrase, blue, sun = token_columns(tokenizer, text, marks)
    assert phrase.pieces == ("▁dark", "▁blue", "▁cir", "cle")
    assert blue.columns == (2,)
    assert sun.pieces == ("▁sun",)
    (whole,) = token_columns(tokenizer, "sunflower", [Mark("sunf", 0, 4)])
    assert whole.pieces == ("▁sun", "flower")  # a token belongs to all words it shares a character with


@both
def test_the_space_before_a_word_is_not_the_word(tokenizer):
    text, marks = marked("(猫) a (é), (blue)")
    cat, e, blue = token_columns(tokenizer, text, marks)
    assert (cat.pieces, e.pieces, blue.pieces) == (("猫",), ("é",), ("▁blue",))


def test_chinese_words_are_found_without_spaces_and_latin_ones_only_whole():
    tokenizer = TOKENIZERS["t5"]
    assert find_words(tokenizer, "一只猫和猫", ["猫"])[0].spans == ((2, 3), (4, 5))
    with pytest.raises(RecipeError, match="only occurs inside 'redder'"):
        find_words(tokenizer, "a redder, circle", ["red"])
    with pytest.raises(RecipeError, match="only occurs inside 'hundred'"):
        find_words(tokenizer, "a hundred circles", ["red"])


@both
def test_columns_are_rows_of_what_the_pipeline_encodes(tokenizer):
    text, marks = marked("  a   (sunflower)\n moves &amp; (caf&eacute;)  ")
    row = tokenizer([prompt_clean(text)], padding="max_length", max_length=32, truncation=True).input_ids[0]
    for found in token_columns(tokenizer, text, marks, max_length=32):
        assert tokenizer.convert_ids_to_tokens([row[column] for column in found.columns]) == list(found.pieces)
    assert count_tokens(tokenizer, text) == sum(token != tokenizer.pad_token_id for token in row)


WORDS = ["a", "red", "sunflower", "circles", "naé", "blue", "猫", "½", "sun", "ﬁr", "zz", "ÿÿ"]


@both
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.booleans()), min_size=1, max_size=8), st.sampled_from([" ", "  "]))
@settings(deadline=None, max_examples=150)
def test_columns_equal_counting_word_by_word(tokenizer, words, space):
    """A word's tokens are the same alone and among others, so its columns follow by counting."""
    expected, column = [], 0
    for word, is_marked in words:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(clean(word), add_special_tokens=False)["input_ids"])
        if is_marked:
            expected.append(tuple(column + i for i, piece in enumerate(pieces) if piece != "▁"))
        column += len(pieces)
    text, marks = marked(space.join(f"({word})" if is_marked else word for word, is_marked in words))
    assert [found.columns for found in token_columns(tokenizer, text, marks)] == expected
    assert count_tokens(tokenizer, text) == column + 1


# cleaning


@pytest.mark.parametrize(
    ("template", "cleaned", "words"),
    [
        ("caf&eacute; (caf&eacute;) x", "café café x", ["café"]),
        ("  a   (red  ball)\n b ", "a red ball b", ["red ball"]),
        ("(sun)&amp;amp;(flower)", "sun&flower", ["sun", "flower"]),
        ("“(quoted)” ﬁ(ﬂower)", '"quoted" fiflower', ["quoted", "flower"]),
        ("cafÃ© (cafÃ©) noir", "café café noir", ["café"]),
        ("&quot;(a)&quot; &lt;(b)&gt;", '"a" <b>', ["a", "b"]),
        ("Ａ(Ｂ)c", "ABc", ["B"]),
        ("a\x00(b)\r\n(c)", "ab c", ["b", "c"]),
        ("a&am(p;b) c", "a&b c", ["&b"]),  # an entity that is cut in two: the mark contains all of it
        ("e(\u0301x) y", "éx y", ["éx"]),
        ("é (red) “â€™", "é red \"'", ["red"]),  # how the end is broken decides how the line is repaired
        ("<b>\n&amp;(red)&eacute;\n(s)", "<b> &redé s", ["red", "s"]),
    ],
)
def test_marks_are_carried_through_the_cleaning(template: str, cleaned: str, words: list[str]):
    text, marks = marked(template)
    assert clean(text) == cleaned
    # each character its own token, so that the columns show exactly which characters were found
    tokenizer = characters()
    found = token_columns(tokenizer, text, marks)
    assert [cleaned[slice(*item.spans[0])] for item in found] == words
    assert ["".join(item.pieces) for item in found] == [word.replace(" ", "") for word in words]


def characters() -> PreTrainedTokenizerFast:
    vocabulary = {chr(code): code for code in range(1, 0x250)} | {"<unk>": 0}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


entities = ["&amp;", "&", "amp;", "&lt;", "<", "&#39;", "&nbsp;"]
broken = ["Ã©", "â€™", "“", "\x85", "\x1b[0m"]
other = ["é", "e\u0301", "ﬁ", "Ａ", "a", "猫", " ", "\t\n", "\xa0", "\u3000", "\u200b"]
messy = st.lists(
    st.sampled_from(entities + broken + other),
    max_size=12,
).map("".join)


@example("<b> &amp;amp;amp;lt; c")  # the tag keeps ftfy from entities, so html's two passes show
@given(st.one_of(messy, st.text(max_size=40)))
@settings(deadline=None, max_examples=400)
def test_cleaning_equals_the_pipelines(text: str):
    assert clean(text) == prompt_clean(text)


@given(messy, st.sampled_from(["red", "sun flower", "Q &lt; R"]), messy)
@settings(deadline=None, max_examples=300)
def test_marked_words_are_found_in_any_surrounding_text(before: str, words: str, after: str):
    text = f"{before} {words} {after}"
    mark = Mark(words, len(before) + 1, len(before) + 1 + len(words))
    (found,) = token_columns(TOKENIZERS["t5"], text, [mark], max_length=10_000)
    assert clean(text)[slice(*found.spans[0])] == clean(words)


# length


@both
def test_length_counts_the_end_token_and_too_long_is_refused(tokenizer):
    assert check_length(tokenizer, "") == 1
    assert check_length(tokenizer, "a red sunflower", max_length=5) == 5
    with pytest.raises(RecipeError, match=r"5 tokens and the model reads 4.*'sunflower'") as caught:
        check_length(tokenizer, "a red sunflower", max_length=4)
    assert "1 token" in caught.value.fix
    # what the pipeline would really drop
    row = tokenizer("a red sunflower", max_length=4, truncation=True).tokens()
    assert row == ["▁a", "▁red", "▁sun", "</s>"]
    text, marks = marked("a (red) sunflower")
    with pytest.raises(RecipeError, match="would be lost"):
        token_columns(tokenizer, text, marks, max_length=4)


# unknown words


@both
def test_unknown_words_are_named_once_and_whole(tokenizer):
    assert unknown_words(tokenizer, "a red sunflower, zz") == []
    assert unknown_words(tokenizer, "a ZEBRA, red zebraX. ZEBRA (🙂) sunflower") == ["ZEBRA", "zebraX", "🙂"]
    assert unknown_words(tokenizer, "(¿Qué? é") == ["Qué", "?"]
    assert unknown_words(tokenizer, "red! &eacute;&Ouml;") == ["!", "éÖ"]


def test_an_unknown_token_that_holds_the_space_before_it_is_named_without():
    tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], 0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
    assert wrapped("a (", return_offsets_mapping=True)["offset_mapping"] == [(0, 1), (1, 3)]
    assert unknown_words(wrapped, "a ( a zebra, a") == ["(", "zebra"]


# refusals


@both
def test_words_that_cannot_be_found_are_refused(tokenizer):
    with pytest.raises(RecipeError, match=r"'circl' is not in the prompt.*only occurs inside 'circles'") as caught:
        find_words(tokenizer, "a red circles", ["circl"])
    assert caught.value.fix == "circles"
    with pytest.raises(RecipeError, match="'circels' is not in the prompt") as caught:
        find_words(tokenizer, "a red circles", ["circels"])
    assert caught.value.fix == "circles"
    with pytest.raises(RecipeError, match="the prompt reads 'a red sun'") as caught:
        find_words(tokenizer, "a red sun", ["zebra"])
    assert caught.value.fix == "one of red, sun"
    with pytest.raises(RecipeError, match="'zebra' is not in the prompt") as caught:
        find_words(tokenizer, "a red", ["zebra"])
    assert caught.value.fix == "red"
    with pytest.raises(RecipeError, match="empty"):
        find_words(tokenizer, "a", ["  "])
    with pytest.raises(RecipeError, match="those characters are 'red'"):
        token_columns(tokenizer, "a red sun", [Mark("sun", 2, 5)])
    with pytest.raises(RecipeError, match="no token"):
        token_columns(tokenizer, "a \x00 b", [Mark("\x00", 2, 3)])


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="does not report which characters"):
        count_tokens(Slow(), "a")
