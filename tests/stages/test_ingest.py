"""Ingest: every format, every kind of damage, and nothing lost."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import polib
import pytest

from pipelines.running.beam_jobs import BeamJobs
from pipelines.running.events import Events
from pipelines.running.executor import check_accounts
from pipelines.stage import Context, Result
from stages.ingest.grouping import normalized_key
from stages.ingest.options import IngestConfig
from stages.ingest.stage import Ingest

PAIRS = [
    ("今天天气很好。", "The weather is nice."),
    ("你好！", "Hello!"),
    ("再见", 'Goodbye, "friend"'),
]
COLUMNS: dict[str, Any] = {"text": "zh", "target": "en"}


class Ingested:
    def __init__(self, folder: Path, result: Result) -> None:
        self.result = result
        self.rows = pl.concat([pl.read_parquet(p) for p in sorted(folder.glob("rows/*"))])
        self.rejected = pl.concat([pl.read_parquet(p) for p in sorted(folder.glob("rejected/*"))])
        check_accounts("ingest", result, folder)
        assert len(self.rows) == result.rows
        assert len(self.rejected) == sum(result.rejected.values())

    def pairs(self) -> list[tuple[str, str]]:
        return sorted(self.rows.select("text", "target").iter_rows())

    def reasons(self) -> dict[str, str]:
        return dict(sorted(self.rejected.select("position", "reason").iter_rows()))


@pytest.fixture
def ingest(tmp_path: Path) -> Callable[..., Ingested]:
    def run(**options: Any) -> Ingested:
        config = IngestConfig.model_validate({"columns": COLUMNS, "max_rejected": 1.0} | options)
        number = len(list(tmp_path.glob("out-*")))
        output, scratch = tmp_path / f"out-{number}", tmp_path / f"scratch-{number}"
        output.mkdir()
        scratch.mkdir()
        events = Events(None)
        context = Context("ingest", 0, tmp_path, output, scratch, 1, events, BeamJobs({}, events))
        return Ingested(output, Ingest(config).run(context, {}))

    return run


def write(folder: Path, name: str, pairs: list[tuple[str, str]] = PAIRS) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True, parents=True)
    if name.endswith(".csv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("zh", "en"), *pairs])
    elif name.endswith(".tsv"):
        lines = ["zh\ten", *(f"{zh}\t{en}" for zh, en in pairs)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps({"zh": z, "en": e}) + "\n" for z, e in pairs))
    elif name.endswith(".json"):
        path.write_text(json.dumps([{"zh": z, "en": e} for z, e in pairs]))
    elif name.endswith(".parquet"):
        pl.DataFrame(pairs, schema=["zh", "en"], orient="row").write_parquet(path)
    return name


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"])
def test_formats_give_the_same_rows(
    tmp_path: Path, ingest: Callable[..., Ingested], name: str
) -> None:
    ingested = ingest(source=write(tmp_path, name))
    assert ingested.pairs() == sorted(PAIRS)
    assert len(ingested.rejected) == 0


def test_ids_are_of_content_and_not_of_place(
    tmp_path: Path, ingest: Callable[..., Ingested]
) -> None:
    from_csv = ingest(source=write(tmp_path, "a.csv"))
    from_json = ingest(source=write(tmp_path, "b.json", PAIRS[::-1]), shards=7)
    assert dict(from_csv.rows.select("id", "text").iter_rows()) == dict(
        from_json.rows.select("id", "text").iter_rows()
    )


def test_globs_urls_packages_and_compression(
    tmp_path: Path, ingest: Callable[..., Ingested]
) -> None:
    write(tmp_path, "many/a.tsv", PAIRS[:1])
    write(tmp_path, "many/b.tsv", PAIRS[1:])
    assert ingest(source="many/*.tsv").pairs() == sorted(PAIRS)
    assert ingest(source=(tmp_path / "many/a.tsv").as_uri()).pairs() == PAIRS[:1]
    (tmp_path / "c.tsv.gz").write_bytes(gzip.compress((tmp_path / "many/a.tsv").read_bytes()))
    assert ingest(source="c.tsv.gz").pairs() == PAIRS[:1]
    hsk = ingest(
        source="package://hsk_sentences_audio/data/sentences.json",
        columns={"text": "chinese", "target": "translation.en"},
        reject={"target": "(?i)placeholder"},
        split={"test": 400, "valid": 200},
    )
    assert hsk.result.rows_in == 4354
    assert hsk.result.properties["splits"]["test"] == 400
    assert hsk.result.properties["splits"]["valid"] == 200


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.tsv", "matches no file"),
        ("package://no_such_package/x.tsv", "is not installed"),
        ("package://hsk_sentences_audio/x.tsv", "matches no file"),
    ],
)
def test_sources_that_are_not_there(
    tmp_path: Path, ingest: Callable[..., Ingested], source: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        list(Ingest(IngestConfig(source=source, columns=COLUMNS)).outside(tmp_path))


@pytest.mark.parametrize("name", ["split", "source", "reason", "hypothesis"])
def test_a_free_column_may_not_be_called_what_stages_write(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a name .*my_{name}: 4"):
        IngestConfig.model_validate({"source": "a.tsv", "columns": COLUMNS | {name: 4}})


@pytest.mark.parametrize("suffix", ["po", "mo"])
def test_catalogues_of_two_languages(
    tmp_path: Path, ingest: Callable[..., Ingested], suffix: str
) -> None:
    for language, words in {"de": ["Haus", "", "Baum"], "fr": ["maison", "porte", "arbre"]}.items():
        catalogue = polib.POFile()
        catalogue.metadata = {"Content-Type": "text/plain; charset=utf-8"}
        for original, word in zip(["house", "door", "tree"], words, strict=True):
            catalogue.append(polib.POEntry(msgid=original, msgstr=word))
        folder = tmp_path / "locale" / language
        folder.mkdir(parents=True)
        (catalogue.save if suffix == "po" else catalogue.save_as_mofile)(
            str(folder / f"x.{suffix}")
        )
    french = ingest(
        source=f"locale/{{language}}/x.{suffix}", columns={"text": "fr", "target": "de"}
    )
    assert french.pairs() == [("arbre", "Baum"), ("maison", "Haus")]
    assert list(french.reasons().values()) == ["untranslated"]
    by_message = ingest(
        source=f"locale/{{language}}/x.{suffix}", columns={"text": "msgid", "target": "fr"}
    )
    assert ("door", "porte") in by_message.pairs()


def test_every_kind_of_bad_line_is_kept_aside(
    tmp_path: Path, ingest: Callable[..., Ingested]
) -> None:
    lines = [
        b"zh\ten\tid",
        "好\tgood\t1".encode(),
        b"\xff\xfe\tbroken\t2",
        "缺\tmissing".encode(),
        b"\tempty\t3",
        "空\t \t4".encode(),
        ("长" * 100_000 + "\tlong\t5").encode(),
        "重\trepeat\t1".encode(),
        "控\x00\x07\tcontrol\t6".encode(),
        "好\tgood\t7".encode(),
        b"",
    ]
    (tmp_path / "bad.tsv").write_bytes(b"\n".join(lines) + b"\n")
    ingested = ingest(source="bad.tsv", columns=COLUMNS | {"id": "id"})
    assert ingested.result.rows_in == len(lines) - 1
    assert ingested.reasons() == {
        "bad.tsv:3": "broken UTF-8",
        "bad.tsv:4": "wrong number of columns",
        "bad.tsv:5": "empty text",
        "bad.tsv:6": "empty target",
        "bad.tsv:8": "duplicate id",
        "bad.tsv:10": "duplicate",
        "bad.tsv:11": "wrong number of columns",
    }


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.jsonl", b'{"zh": "a", "en": "b"}\n{"zh": "c"}\nnot json\n', "broken JSON"),
        ("a.jsonl", b'{"zh": "a", "en": "b"}\n{"zh": [1.5], "en": "x"}\n', "not text"),
        ("a.csv", b'zh,en\n\xe4\xbd\xa0,you\n"\xff",x\n', "broken UTF-8"),
        ("a.json", b'[{"zh": "a", "en": "b"}', "unreadable file"),
        ("a.parquet", b"PAR1 this is no parquet", "unreadable file"),
        ("a.tsv.gz", b"\x1f\x8b this is no gzip", "unreadable file"),
        ("b.jsonl.gz", gzip.compress(b'{"zh": "a", "en": "b"}\n', mtime=0)[:-6], "unreadable file"),
        ("a.jsonl", b'{"zh": "\\ud800", "en": "half"}\n{"zh": "a", "en": "b"}\n', "broken UTF-8"),
    ],
)  # fmt: skip
def test_damage_of_other_formats(
    tmp_path: Path, ingest: Callable[..., Ingested], name: str, data: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    write(tmp_path, "good.tsv", PAIRS[:1])
    ingested = ingest(source=["good.tsv", name])
    assert reason in ingested.reasons().values()


def test_duplicates_and_near_duplicates(tmp_path: Path, ingest: Callable[..., Ingested]) -> None:
    pairs = [("你好！", "Hello!"), ("你好！", "Hello!"), ("你好!", "hello"), ("你好", "Hi")]
    source = write(tmp_path, "d.tsv", pairs)
    assert len(ingest(source=source, deduplicate="none").rows) == 4
    exact = ingest(source=source, deduplicate="exact")
    assert exact.result.rejected == {"duplicate": 1}
    near = ingest(source=source)
    assert near.result.rejected == {"duplicate": 1, "near duplicate": 1}
    assert near.reasons() == {"d.tsv:3": "duplicate", "d.tsv:4": "near duplicate"}


@pytest.mark.parametrize("split", [{"valid": 30, "test": 40}, {"valid": 0.2, "test": 0.2}])
def test_a_source_never_stands_in_two_splits(
    tmp_path: Path, ingest: Callable[..., Ingested], split: dict[str, Any]
) -> None:
    pairs = [(f"source {n % 60}{'!' * (n % 3)}", f"target {n}") for n in range(200)]
    ingested = ingest(source=write(tmp_path, "s.tsv", pairs), split=split)
    splits: dict[str, set[str]] = {}
    for text, name in ingested.rows.select("text", "split").iter_rows():
        splits.setdefault(normalized_key(text), set()).add(name)
    assert all(len(names) == 1 for names in splits.values())
    counts = ingested.result.properties["splits"]
    assert counts["valid"] > 0 and counts["test"] > 0
    if isinstance(split["valid"], int):
        # Groups have 3 or 4 rows and stay whole.
        assert 26 < counts["valid"] <= 30 and 36 < counts["test"] <= 40


def test_declared_splits_keep_what_is_measured_on(
    tmp_path: Path, ingest: Callable[..., Ingested]
) -> None:
    write(tmp_path, "train.tsv", [("a", "1"), ("b", "2"), ("c", "3")])
    write(tmp_path, "test.tsv", [("b", "two"), ("C", "3"), ("d", "4")])
    ingested = ingest(source={"train": "train.tsv", "test": "test.tsv"})
    placed = sorted(ingested.rows.select("text", "split").iter_rows())
    assert placed == [("C", "test"), ("a", "train"), ("b", "test"), ("d", "test")]
    assert ingested.reasons() == {
        "train.tsv:3": "source is in another split",
        "train.tsv:4": "source is in another split",
    }


def test_further_sources_do_not_leak_into_the_test(
    tmp_path: Path, ingest: Callable[..., Ingested]
) -> None:
    pairs = [(f"word {n}", f"meaning {n}") for n in range(50)]
    write(tmp_path, "main.tsv", pairs)
    write(tmp_path, "more.tsv", [(text, f"other {target}") for text, target in pairs])
    ingested = ingest(
        source="main.tsv", split={"test": 10}, also=[{"source": "more.tsv", "columns": COLUMNS}]
    )
    test = set(ingested.rows.filter(split="test")["text"])
    assert len(test) == 10
    assert not test & set(ingested.rows.filter(split="train")["text"])
    assert ingested.result.rejected == {"source is in another split": 10}


def test_too_many_bad_rows_fail_the_stage(tmp_path: Path, ingest: Callable[..., Ingested]) -> None:
    source = write(tmp_path, "bad.tsv", [("a", "b"), ("", "x"), ("", "y")])
    with pytest.raises(ValueError, match="rejected 2 of 3 rows, more than max_rejected"):
        ingest(source=source, max_rejected=0.5)


def test_large_files_are_cut_at_line_ends(
    tmp_path: Path, ingest: Callable[..., Ingested], monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [(f"文 {n}", f"text {n}") for n in range(500)] + [("", "bad")]
    whole = ingest(source=write(tmp_path, "l.tsv", pairs))
    monkeypatch.setattr("stages.ingest.units.RANGE_BYTES", 700)
    cut = ingest(source="l.tsv")
    assert cut.rows.equals(whole.rows)
    assert cut.reasons() == whole.reasons() == {"l.tsv:502": "empty text"}
