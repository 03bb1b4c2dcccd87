"""Text to token ids and back: normalisation, word segmentation, stop words, subwords.

Written once and shipped inside every model and graph artifact, so that serving uses the same
preprocessing as training. Imports no torch, no Beam and nothing of the pipeline.
"""

from __future__ import annotations

import json
import re
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from model.batching import Ragged
from model.modalities.text_settings import Side, SideSettings, TextSettings
from model.vocabulary import BOS, EOS, PAD, UNK

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import sentencepiece

    from model.modalities.text_settings import Characters

CONTROL_CHARACTERS = r"[\p{Cc}\p{Cf}\p{Co}\p{Cn}]+"
"""Controls, invisible formatting marks, private and unassigned code points: never text."""

SPACE_IN_CHINESE = re.compile(
    r"(?<=[\u2e80-\u9fff\uff00-\uffef]) +| +(?=[\u2e80-\u9fff\uff00-\uffef])"
)


def single_line(texts: pl.Series) -> pl.Series:
    """Replaces controls and runs of white space by a space: the result fits one line of a file."""
    cleaned = texts.str.replace_all(r"\s+", " ").str.replace_all(CONTROL_CHARACTERS, " ")
    return cleaned.str.replace_all(r"\s+", " ").str.strip_chars()


def segment_words(texts: pl.Series) -> pl.Series:
    """Separates Chinese words by spaces, with jieba's precise mode and its own dictionary."""
    import jieba

    # Its progress lines are of no use in a log; they come once, when its dictionary is read.
    level = jieba.default_logger.level
    jieba.setLogLevel("WARNING")
    jieba.initialize()
    jieba.setLogLevel(level)
    cut = [" ".join(" ".join(jieba.lcut(text)).split()) for text in texts]
    return pl.Series(texts.name, cut, dtype=pl.String)


@cache
def _converter(characters: Characters) -> Any:
    import opencc

    return opencc.OpenCC("t2s" if characters == "simplified" else "s2t")


def convert_chinese(texts: pl.Series, characters: Characters) -> pl.Series:
    """Chinese in simplified or traditional characters, word by word, by OpenCC's dictionaries."""
    converter = _converter(characters)
    converted = [converter.convert(text) if text is not None else None for text in texts]
    return pl.Series(texts.name, converted, dtype=pl.String)


def to_simplified(text: str) -> str:
    """Chinese in simplified characters."""
    converted: str = _converter("simplified").convert(text)
    return converted


class TextProcessor:
    """Prepares, encodes and decodes text with the settings and subword models of one folder.

    The folder holds `text.json` and `source.spm` and `target.spm`, or `shared.spm` alone; and
    `pieces.json` where the settings say so.
    """

    def __init__(self, settings: TextSettings, folder: Path) -> None:
        self.settings = settings
        self.folder = folder

    @classmethod
    def load(cls, folder: Path) -> TextProcessor:
        settings = json.loads((folder / "text.json").read_text(encoding="utf-8"))
        return cls(TextSettings.model_validate(settings), folder)

    @cached_property
    def subwords(self) -> dict[Side, sentencepiece.SentencePieceProcessor]:
        import sentencepiece

        def load(name: str) -> sentencepiece.SentencePieceProcessor:
            path = self.folder / f"{name}.spm"
            return sentencepiece.SentencePieceProcessor(model_file=str(path))

        if self.settings.shared and not self.settings.listed:
            shared = load("shared")
            return {"source": shared, "target": shared}
        return {"source": load("source"), "target": load("target")}

    @cached_property
    def pieces(self) -> dict[Side, list[str]]:
        """Pieces in the order of their ids, if they are listed."""
        written = json.loads((self.folder / "pieces.json").read_text(encoding="utf-8"))
        return {"source": written["source"], "target": written["target"]}

    @cached_property
    def ids(self) -> dict[Side, np.ndarray]:
        """Maps the subword models' own numbers to ids, if pieces are listed."""
        by_side: dict[Side, np.ndarray] = {}
        for side, model in self.subwords.items():
            known = {piece: id for id, piece in enumerate(self.pieces[side])}
            names = [model.id_to_piece(number) for number in range(model.get_piece_size())]
            by_side[side] = np.array([known.get(name, UNK) for name in names], dtype=np.int64)
        return by_side

    def size(self, side: Side) -> int:
        """Vocabulary size of a side, in pieces."""
        if self.settings.listed:
            return len(self.pieces[side])
        return int(self.subwords[side].get_piece_size())

    @property
    def sizes(self) -> dict[str, int]:
        """What a model must know of the text: see `model.modalities.sources.Sizes`."""
        return {
            "source": self.size("source"),
            "target": self.size("target"),
            "shared": int(self.settings.shared),
            "text": int(self.settings.sources),
            "tasks": len(self.settings.tasks),
        }

    def prepare(self, texts: pl.Series, side: Side) -> pl.Series:
        """Normalised, segmented text without stop words, as the subword model takes it."""
        return prepare(texts, self.settings.of(side))

    def encode_prepared(self, texts: Iterable[str], side: Side) -> Ragged:
        """Subword ids of prepared text, EOS last and no BOS."""
        # Arrays directly from SentencePiece's buffers: copying lists of integers would take longer
        # than the segmentation itself.
        rows = self.subwords[side].encode(
            list(texts), return_type="numpy", add_eos=not self.settings.listed
        )
        if self.settings.listed:
            names, prefix = self.pieces[side], self.settings.of(side).prefix
            first = np.array([names.index(prefix)] if prefix else [], dtype=np.int64)
            last = np.array([EOS])
            rows = [np.concatenate([first, self.ids[side][row], last]) for row in rows]
        offsets = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
        return Ragged(np.concatenate([np.zeros(0, np.int64), *rows]), offsets)

    def encode(self, texts: Sequence[str], side: Side = "source") -> Ragged:
        """Subword ids of raw text, EOS last and no BOS."""
        return self.encode_prepared(self.prepare(pl.Series(texts, dtype=pl.String), side), side)

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Target text of subword ids; special ids are left out, segmentation is undone."""
        special = {PAD, BOS, EOS}
        plain = [
            row if special.isdisjoint(row) else [token for token in row if token not in special]
            for row in ids
        ]
        texts: list[str]
        if self.settings.listed:
            names, model = self.pieces["target"], self.subwords["target"]
            texts = [model.decode_pieces([names[token] for token in row]) for row in plain]
            # A piece that only the source has keeps its mark of a word's beginning.
            texts = [text.replace("\u2581", " ") for text in texts]
        else:
            texts = self.subwords["target"].decode(plain)
        if self.settings.target.segment == "jieba":
            texts = [SPACE_IN_CHINESE.sub("", text) for text in texts]
        return [" ".join(text.split()) for text in texts]


def prepare(texts: pl.Series, side: SideSettings) -> pl.Series:
    """`TextProcessor.prepare` for one side's settings, before any subword model exists."""
    prepared = single_line(texts)
    if side.normalize != "none":
        form: Literal["NFC", "NFKC"] = "NFKC" if side.normalize == "nfkc" else "NFC"
        prepared = single_line(prepared.str.normalize(form))
    if side.chinese is not None:
        prepared = convert_chinese(prepared, side.chinese)
    if side.lowercase:
        prepared = prepared.str.to_lowercase()
    if side.segment == "jieba":
        prepared = segment_words(prepared)
    if side.stopwords:
        words = prepared.str.split(" ")
        remaining = words.list.filter(~pl.element().is_in(list(side.stopwords)))
        prepared = remaining.list.join(" ")
    return prepared


def train_subwords(
    texts: Iterable[str], path: Path, size: int, algorithm: str, coverage: float
) -> None:
    """Trains a SentencePiece model and writes it to `path`.

    One thread, because the sums of unigram training depend on the number of threads, and the same
    text must give the same bytes on any machine. The result has fewer pieces than `size` if the
    text does not contain more.
    """
    import io

    import sentencepiece

    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=written,
            vocab_size=size,
            model_type=algorithm,
            character_coverage=coverage,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            pad_id=PAD,
            bos_id=BOS,
            eos_id=EOS,
            unk_id=UNK,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(
            f"SentencePiece cannot make a vocabulary of {size} pieces: {error}; raise "
            "vocabulary.size, or lower vocabulary.coverage so that rare characters need no piece"
        ) from error
    path.write_bytes(written.getvalue())
