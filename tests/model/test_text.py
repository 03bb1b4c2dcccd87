"""Text processing: any text comes out as it went in."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.modalities.preparation import sources_of
from model.modalities.processing import Processor
from model.modalities.text import TextProcessor, prepare, single_line, train_subwords
from model.modalities.text_settings import SideSettings, TextSettings
from model.vocabulary import EOS

SENTENCES = ["the weather is good today", "a walk in the park", "今天天气很好", "适合外出散步"]


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> TextProcessor:
    folder = tmp_path_factory.mktemp("text")
    settings = TextSettings(shared=True)
    train_subwords(SENTENCES * 3, folder / "shared.spm", 80, "bpe", 1.0)
    (folder / "text.json").write_text(settings.model_dump_json())
    return TextProcessor.load(folder)


def test_round_trip(processor: TextProcessor) -> None:
    ids = [processor.encode(SENTENCES).row(n) for n in range(len(SENTENCES))]
    assert all(row[-1] == EOS and row.count(EOS) == 1 for row in ids)
    assert ids == [[*processor.subwords["source"].encode(text), EOS] for text in SENTENCES]
    assert processor.decode(ids) == SENTENCES


@given(st.lists(st.text(), max_size=5))
def test_any_text_becomes_one_line(texts: list[str]) -> None:
    for line in single_line(pl.Series(texts, dtype=pl.String)):
        assert line == " ".join(line.split())
        assert not any(character in line for character in "\n\r\t\x00\x0b\x85\u2028\ufeff\u200b")


@given(st.lists(st.text(), max_size=4))
def test_any_text_can_be_encoded(processor: TextProcessor, texts: list[str]) -> None:
    assert len(processor.encode(texts)) == len(texts)


@pytest.mark.parametrize("modality", ["text", "image", "audio"])
def test_what_a_model_was_not_made_for_is_refused(processor: TextProcessor, modality: str) -> None:
    settings = processor.settings.model_copy(update={"sources": False, "tasks": ("read",)})
    whole = Processor(TextProcessor(settings, processor.folder), {})
    with pytest.raises(ValueError, match=f"the model was made without {modality}"):
        sources_of(whole, [{"task": "read", modality: "seven"}])


def test_normalisation_follows_unicode() -> None:
    texts = pl.Series(["ｅ\u0301，１", "Ａ"])
    assert prepare(texts, SideSettings(normalize="nfkc")).to_list() == ["é,1", "A"]
    assert prepare(texts, SideSettings(normalize="nfc")).to_list() == ["ｅ\u0301，１", "Ａ"]
    assert prepare(texts, SideSettings(normalize="nfkc", lowercase=True)).to_list()[1] == "a"


def test_jieba_and_stop_words() -> None:
    side = SideSettings(segment="jieba", stopwords=("很",))
    assert prepare(pl.Series(["今天天气很好"]), side).to_list() == ["今天天气 好"]


def test_chinese_is_written_with_one_kind_of_characters() -> None:
    """Not character by character: 髮 and 發 are one in simplified Chinese, and 发 is two."""
    texts = pl.Series(["我們剪頭髮，他發展。", "我们剪头发，他发展。", "no Chinese", ""])
    simplified = prepare(texts, SideSettings(chinese="simplified")).to_list()
    assert simplified == ["我们剪头发，他发展。"] * 2 + ["no Chinese", ""]
    traditional = prepare(texts, SideSettings(chinese="traditional")).to_list()
    assert traditional == ["我們剪頭髮，他發展。"] * 2 + ["no Chinese", ""]
    with_null = prepare(
        pl.Series([None, "們"], dtype=pl.String), SideSettings(chinese="simplified")
    )
    assert with_null.to_list() == [None, "们"]


def test_segmented_chinese_targets_are_joined_again(processor: TextProcessor) -> None:
    settings = TextSettings(target=SideSettings(segment="jieba"), shared=True)
    joined = TextProcessor(settings, processor.folder)
    ids = processor.encode(["今天 天气 很 好 the weather"])
    assert joined.decode([ids.row(0)]) == ["今天天气很好the weather"]


def test_the_same_text_makes_the_same_vocabulary(tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_subwords(SENTENCES, tmp_path / name, 60, "unigram", 1.0)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_vocabulary_that_is_too_small_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"raise vocabulary\.size"):
        train_subwords(SENTENCES, tmp_path / "a", 8, "bpe", 1.0)
