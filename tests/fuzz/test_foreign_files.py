"""Files of strangers: read rightly, or refused with one message, whatever is in them."""

import base64
import csv
import gzip
import json
import logging
import re
from contextlib import suppress
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import (
    FEW,
    LETTERS,
    as_jsonl,
    damaged,
    fuzzed,
    outcome,
    questions,
    scalars,
    texts,
    values,
    words,
)
from hydra.errors import HydraException
from hypothesis import strategies as st
from omegaconf.errors import OmegaConfBaseException

from exam.config import AnswerForm, Corpus, CorpusFormat, Data, Generator, Infer
from exam.config.compose import compose_config, explain
from exam.config.saved import load_run, save_run
from exam.config.validate import validate
from exam.core.artifacts import Stage, load_stage
from exam.core.errors import ExamError
from exam.core.files import digest
from exam.data.articles import get_articles, iter_articles
from exam.data.cells import normalize_id
from exam.data.corpus import list_articles
from exam.data.questions import read_qrels, read_questions
from exam.data.schema import FEATURES, parse_questions
from exam.data.sentences import sentence_offsets
from exam.data.tables import read_rows, write_csv
from exam.evaluation.predictions import SCHEMA as PREDICTIONS
from exam.evaluation.predictions import make_predictions, read_all_predictions, write_predictions
from exam.evaluation.submission import write_submission
from exam.generation.llm import ReplyCache
from exam.generation.prompts import parse_response
from exam.report.page import Page, write_page
from exam.retrieval.contexts import FILE, read_contexts
from exam.retrieval.contexts import SCHEMA as CONTEXTS
from exam.retrieval.mining import read_positives

MAPPED = {c: c for c in ("id", "prompt", "answer")}
COLUMNS = {"id": "id", "title": "title", "text": "text"}


@pytest.fixture(autouse=True)
def without_fingerprints(monkeypatch):
    """What `datasets` works out for its caches takes longer than reading a file."""
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda _: "0" * 16)
    monkeypatch.setattr("datasets.arrow_dataset.update_fingerprint", lambda *_: "0" * 16)
    logging.getLogger("exam").setLevel(logging.ERROR)


def asked(path: Path, rows: list[dict], options: str | None = None) -> Data:
    letters = "".join(name for name in rows[0] if name in LETTERS)
    return Data(
        name="q",
        dir=str(path.parent),
        options=options or letters,
        columns=dict(MAPPED),
        answer=AnswerForm.letter,  # a text may be a letter, too
    )


def check_questions(found) -> None:
    """Whatever was read, later stages can rely on it."""
    ids = found["id"][:]
    assert all(ids)
    assert len(set(ids)) == len(ids)
    for options, label in zip(found["options"], found["label"], strict=True):
        assert 2 <= len(options) <= 26
        assert all(text and text == text.strip() for text in options)
        assert label is None or 0 <= label < len(options)


def expected(rows: list[dict]) -> list[dict]:
    letters = [name for name in rows[0] if name in LETTERS]
    return [
        {
            "id": row["id"],
            "prompt": row["prompt"].strip(),
            "options": [row[letter].strip() for letter in letters],
            "label": letters.index(row["answer"]) if row["answer"] else None,
            "context": None,
            "articles": [],
        }
        for row in rows
    ]


def as_csv(rows: list[dict], end="\n", *, bom=False, quoted=False, blank=False) -> bytes:
    def cell(text: str) -> str:
        needs = quoted or set(text) & set(',"\r\n')
        return '"' + text.replace('"', '""') + '"' if needs else text

    lines = [",".join(map(cell, line)) for line in ([*rows[0]], *(r.values() for r in rows))]
    between = end * (2 if blank else 1)
    return ("\ufeff" * bom + between.join(lines) + end).encode()


switches = dict.fromkeys(("bom", "quoted", "blank"), st.booleans())
dialects = st.fixed_dictionaries({"end": st.sampled_from(["\n", "\r\n", "\r"]), **switches})


def test_questions_in_any_csv_dialect(tmp_path):
    path = tmp_path / "q.csv"

    def one(rows, dialect, more):
        written = [{**row, **more} for row in rows]
        path.write_bytes(as_csv(written, **dialect))
        assert read_questions(asked(path, rows), path.name).to_list() == expected(rows)
        return True

    extra = st.dictionaries(words.filter(lambda name: name not in LETTERS), texts, max_size=2)
    extra = extra.filter(lambda names: not names.keys() & {"id", "prompt", "answer"})
    fuzzed(questions(), dialects, extra, read=one)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_questions_in_damaged_files(tmp_path, form):
    path = tmp_path / f"q.{form}"

    def one(rows, draw):
        if form == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        else:
            path.write_bytes(as_jsonl(rows) if form == "jsonl" else as_csv(rows))
        broken = draw.draw(st.integers(0, 4)) >= 2
        if broken:
            path.write_bytes(draw.draw(damaged(path.read_bytes())))
        found = outcome(lambda: read_questions(asked(path, rows), path.name))
        if found is not None:
            check_questions(found)
        assert broken or found.to_list() == expected(rows)
        return found is not None

    fuzzed(questions(), st.data(), read=one)


def test_questions_whose_cells_are_of_any_kind(tmp_path):
    path = tmp_path / "q.jsonl"

    def one(rows, column, value, ascii_only):
        rows[0] = {**rows[0], column: value}
        path.write_bytes(as_jsonl(rows, ascii_only=ascii_only))
        found = outcome(lambda: read_questions(asked(path, rows, "ABCDE"), path.name))
        if found is None:
            return False
        check_questions(found)
        assert not isinstance(value, (list, dict)) or column in ("more", "F", "answer")
        if column in ("prompt", "B"):
            text = found["prompt"][0] if column == "prompt" else found["options"][0][1]
            assert text == str(value).strip()
        return True

    columns = st.sampled_from(["id", "prompt", "B", "answer", "F", "more"])
    fuzzed(questions(5), columns, st.one_of(values, words), st.booleans(), read=one)


ARROW = [
    pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string()),
    pa.int64(), pa.uint8(), pa.float32(), pa.bool_(), pa.null(), pa.binary(), pa.date32(),
    pa.timestamp("ns"), pa.timestamp("s"), pa.duration("s"), pa.time32("s"), pa.decimal128(12, 2),
    pa.list_(pa.string()), pa.struct({"a": pa.string()}), pa.map_(pa.string(), pa.int8()),
]  # fmt: skip


@st.composite
def columns(draw, number: int) -> pa.Array:
    """A column of any type, with cells that Python may have no value for."""
    kind = draw(st.sampled_from(ARROW))
    if pa.types.is_null(kind):
        return pa.nulls(number)
    if kind in ARROW[:4]:
        cells = draw(st.lists(st.one_of(st.none(), texts), min_size=number, max_size=number))
        return pa.array(cells, pa.string()).cast(kind)
    if pa.types.is_nested(kind):
        cell = {"list": ["a"], "struct": {"a": "b"}, "map": [("a", 1)]}[str(kind).split("<")[0]]
        return pa.array([cell] * number, kind)
    if pa.types.is_binary(kind):
        return pa.array([draw(st.binary(max_size=4)) for _ in range(number)], kind)
    if pa.types.is_decimal(kind):
        return pa.array([draw(st.integers(0, 999)) for _ in range(number)], pa.int32()).cast(kind)
    wide = draw(st.booleans()) and kind.bit_width == 64
    drawn = [draw(st.integers(0, 2**41 if wide else 1)) for _ in range(number)]
    width = {1: pa.bool_(), 8: pa.uint8(), 32: pa.int32(), 64: pa.int64()}[kind.bit_width]
    made = pa.array(drawn, pa.int64()).cast(width)
    return made.cast(kind) if pa.types.is_floating(kind) else made.view(kind)


def test_questions_in_parquet_columns_of_any_type(tmp_path):
    path = tmp_path / "q.parquet"

    def one(rows, data):
        name = data.draw(st.sampled_from([*rows[0], *["more"] * 8]))
        table = pa.Table.from_pylist(rows)
        column = data.draw(columns(len(rows)))
        place = table.schema.names.index(name) if name in table.schema.names else len(rows[0])
        if place < len(rows[0]) and data.draw(st.integers(0, 9)):
            table = table.remove_column(place)
        pq.write_table(table.add_column(place, name, column), path)
        found = outcome(lambda: read_questions(asked(path, rows), path.name))
        if found is not None:
            check_questions(found)
            assert name in ("more", "answer") or not pa.types.is_nested(column.type)
        return found is not None

    fuzzed(questions(3), st.data(), read=one)


def test_options_in_a_list_of_any_kind():
    data = Data(name="q", options=None, columns={**MAPPED, "options": "options"})
    right = st.lists(words, min_size=2, max_size=26)
    labelled = right.map(lambda own: {"text": own, "label": list(LETTERS[: len(own)])})

    def one(options, answer):
        row = {"id": "1", "prompt": "Which?", "options": options, "answer": answer}
        found = outcome(lambda: parse_questions([row], data, "q"))
        if found is None:
            return False
        check_questions(found)
        own = options["text"] if isinstance(options, dict) else options
        assert len(own) == len(found["options"][0])
        return True

    answers = st.one_of(st.just(None), st.sampled_from("AB"), scalars)
    fuzzed(st.one_of(right, labelled, right, values), answers, read=one)


def test_qrels_and_positives(tmp_path):
    def one(rows, data):
        path = tmp_path / "q_qrels.csv"
        path.write_bytes(
            as_csv([{"question": r["id"], "article": f"a{r['prompt']}"} for r in rows])
        )
        right = {r["id"].strip(): [normalize_id(f"a{r['prompt']}")] for r in rows}
        assert read_qrels(path) == right
        positives = tmp_path / "p.jsonl"
        gain = data.draw(st.one_of(st.just(1.0), scalars))
        made = [{"question_id": r["id"], "text": r["prompt"], "gain": gain} for r in rows]
        positives.write_bytes(as_jsonl(made))
        if data.draw(st.booleans()):
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        found = outcome(lambda: read_qrels(path)), outcome(lambda: read_positives(positives))
        return None not in found

    fuzzed(questions(2), st.data(), read=one)


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_corpora(tmp_path, form):
    path = tmp_path / f"c.{form}"
    corpus = Corpus(name="c", format=CorpusFormat.jsonl, dir=str(path), columns=COLUMNS)
    article = st.fixed_dictionaries({"id": words, "title": texts, "text": texts})

    def one(rows, data):
        kind = data.draw(st.sampled_from(["whole", "whole", "cell", "bytes"]))
        column = data.draw(st.sampled_from(list(COLUMNS)))
        if form == "jsonl":
            if kind == "cell":
                rows[0][column] = data.draw(values)
            path.write_bytes(as_jsonl(rows))
        else:
            table = pa.Table.from_pylist(rows)
            if kind == "cell":
                place = list(COLUMNS).index(column)
                table = table.set_column(place, column, data.draw(columns(len(rows))))
            pq.write_table(table, path)
        if kind == "bytes":
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        with TemporaryDirectory() as outputs:
            listed = outcome(lambda: list_articles(corpus, Path(outputs)).files)
        if listed is None:
            return False
        (file,) = listed
        found = outcome(lambda: list(iter_articles(file)))
        if found is None:
            assert kind == "bytes"
            return False
        expected = [{**row, "id": normalize_id(row["id"])} for row in rows]
        assert kind != "whole" or [vars(a) for a in found] == expected
        again = outcome(lambda: get_articles(file, [a.id for a in found]))
        if again is None:
            assert kind == "bytes"
            return False
        assert again == {a.id: a for a in found}
        for a in found:
            ends = [0, *(place for pair in sentence_offsets(a.text, 1) for place in pair)]
            assert ends == sorted(ends)
            assert ends[-1] <= len(a.text)
        return True

    rows = st.lists(article, min_size=1, max_size=4, unique_by=lambda row: normalize_id(row["id"]))
    fuzzed(rows, st.data(), read=one)


def test_any_bytes_as_any_table(tmp_path):
    def one(data, form, whole):
        path = tmp_path / f"any.{form}"
        path.write_bytes(b"id,prompt\n1,x\n" if whole else data)
        path = path if not whole else path.rename(tmp_path / "any.csv")
        return outcome(lambda: list(read_rows(path))) is not None

    forms = st.sampled_from(["csv", "jsonl", "parquet"])
    fuzzed(st.binary(max_size=60), forms, st.booleans(), read=one)


PREDICTED = [
    {"id": str(i), "prompt": "?", "options": ["a", "b", "c"], "label": i % 3} for i in range(4)
]


@st.composite
def altered(draw, table: pa.Table) -> pa.Table:
    """A table with rows in another order, or with a cell or a column changed, doubled or gone."""
    change = draw(st.sampled_from(["rows", "rows", "cell", "column", "gone", "double", "few"]))
    name = draw(st.sampled_from(table.schema.names))
    place = table.schema.names.index(name)
    if change == "rows":
        order = draw(st.permutations(range(len(table))))
        return table.take(pa.array(order))
    if change == "cell":
        cells = table[name].to_pylist()
        cells[draw(st.integers(0, len(cells) - 1))] = draw(
            st.sampled_from([None, cells[0], cells[-1]])
        )
        return table.set_column(place, name, pa.array(cells, table[name].type))
    if change == "column":
        return table.set_column(place, name, draw(columns(len(table))))
    if change == "gone":
        return table.remove_column(place)
    if change == "double":
        return table.append_column(name, table[name])
    return table.slice(0, draw(st.integers(0, len(table) - 1)))


def test_predictions(tmp_path):
    from datasets import Dataset

    path = tmp_path / "p.parquet"
    rows = [{**dict.fromkeys(FEATURES), **row} for row in PREDICTED]
    asked_of = Dataset.from_list(rows, features=FEATURES)
    logits = np.arange(12.0).reshape(4, 3)
    write_predictions(path, [make_predictions(asked_of, logits, "r", "c")])
    table, whole = pq.read_table(path), path.read_bytes()

    def one(data, bytes_alone):
        kind = data.draw(st.sampled_from(["rows", "rows", "any"]))
        order = data.draw(st.permutations(range(len(table))))
        own = table.take(pa.array(order))
        if kind == "any":
            own = data.draw(altered(table))
        pq.write_table(own, path)
        if kind == "any" and bytes_alone:
            path.write_bytes(data.draw(damaged(whole)))
        found = outcome(lambda: read_all_predictions(path))
        if found is None:
            return False
        for part in found:
            assert len(part.ids) == len(part.logits) == len(part.labels)
            assert (np.isfinite(part.logits).sum(axis=1) >= 1).all()
        if kind == "rows":
            (part,) = found
            assert {k: row.tolist() for k, row in zip(part.ids, part.logits, strict=True)} == {
                str(i): logits[i].tolist() for i in range(4)
            }
        return True

    assert set(table.schema.names) == set(PREDICTIONS.names)
    fuzzed(st.data(), st.booleans(), read=one)


def test_contexts(tmp_path):
    stage = Stage("contexts", tmp_path, {})
    rows = [
        dict.fromkeys(CONTEXTS.names, "x") | {"question_id": q, "rank": r, "score": 1.0}
        for q in "ab"
        for r in (1, 2, 3)
    ]
    table = pa.Table.from_pylist(rows, CONTEXTS)

    def one(texts_of, data, top_k):
        own = table.set_column(6, CONTEXTS.field(6), pa.array(texts_of, pa.large_string()))
        kind = data.draw(st.sampled_from(["whole", "whole", "altered", "bytes"]))
        pq.write_table(data.draw(altered(own)) if kind == "altered" else own, tmp_path / FILE)
        if kind == "bytes":
            written = (tmp_path / FILE).read_bytes()
            (tmp_path / FILE).write_bytes(data.draw(damaged(written)))
        found = outcome(lambda: read_contexts(stage, top_k))
        if found is None:
            return False
        for passages in found.values():
            assert [p["rank"] for p in passages] == list(range(1, len(passages) + 1))
            assert all(isinstance(p["text"], str) for p in passages)
        if kind == "whole":
            kept, depth = [p["text"] for q in "ab" for p in found.get(q, [])], top_k or 3
            assert kept == [text for i, text in enumerate(texts_of) if i % 3 < depth]
        return True

    six = st.lists(texts, min_size=6, max_size=6)
    fuzzed(six, st.data(), st.one_of(st.none(), st.integers(1, 4)), read=one)


MANIFEST = {"key": {"a": 1}, "metadata": {}, "files": {}, "seconds": 1.0, "peak_mib": 2.0}


def test_written_tables_come_back(tmp_path):
    def one(rows):
        write_csv(tmp_path / "t.csv", ["a", "b"], rows)
        assert [[row["a"], row["b"]] for row in read_rows(tmp_path / "t.csv")] == rows
        return True

    cells = st.tuples(words, texts).map(lambda row: [text.replace("\0", "") for text in row])
    fuzzed(st.lists(cells.filter(lambda row: row[0].strip()), min_size=1), read=one)


def test_manifests(tmp_path):
    def one(content, data):
        kind = data.draw(st.sampled_from([*["whole"] * 6, "value", "file", "bytes"]))
        found = {**MANIFEST, "metadata": {"note": content}}
        if kind == "value":
            found[data.draw(st.sampled_from([*MANIFEST, content]))] = data.draw(values)
        if kind == "file":
            found["files"] = {content: data.draw(values)}
        path = tmp_path / "manifest.json"
        read = json.loads(json.dumps(found))
        path.write_text(json.dumps({**read, "sha256": digest(read)}))  # as a stranger can
        if kind == "bytes":
            path.write_bytes(data.draw(damaged(path.read_bytes())))
        stage = outcome(lambda: load_stage(tmp_path))
        assert kind != "whole" or stage.metadata == {"note": content}
        assert kind != "file" or stage is None
        return stage is not None

    fuzzed(texts, st.data(), read=one)


def test_run_configurations(tmp_path):
    path, own = tmp_path / "config.yaml", Infer(ckpt="run")
    overrides = ["model=tiny", "trainer.num_train_epochs=1"]
    config = compose_config("train", *overrides)
    save_run(config, path)
    whole = path.read_text()
    lines = whole.splitlines()

    def one(prompt, data):
        kind = data.draw(st.sampled_from([*["text"] * 3, "line", "bytes"]))
        own_lines = list(lines)
        place = data.draw(st.integers(0, len(lines) - 1))
        if kind == "line":
            key = lines[place].partition(":")[0]
            value = data.draw(st.one_of(values, st.sampled_from(["&a [*a]", "!!python/name:os"])))
            own_lines[place] = f"{key}: {value if isinstance(value, str) else json.dumps(value)}"
        written = "\n".join(own_lines).encode()
        path.write_bytes(data.draw(damaged(written)) if kind == "bytes" else written)
        if kind == "text":
            asked_for = replace(config, encoder=replace(config.encoder, query_prefix=prompt))
            if outcome(lambda: validate(asked_for) or True) is None:
                return False
            save_run(asked_for, path)
        found = outcome(lambda: load_run(path, own))
        if kind == "text" and found is not None:
            assert found.encoder.query_prefix == prompt
        return found is not None

    fuzzed(texts, st.data(), read=one, examples=FEW)


@st.composite
def overrides(draw) -> str:
    """What a person may type, or another program on their behalf."""
    key = draw(
        st.sampled_from(
            ["context.num_passages", "model", "data.dir", "seed", "trainer.report_to", "hub.repo",
             "retriever.top_k", "data.columns.A", "corpus.files", "model.template", "hydra.run.dir",
             "+x", "~model", "name", "", "data.fold", "index.max_memory_gib",
             "encoder.query_prefix"]
        )
    )  # fmt: skip
    plain = st.sampled_from(["1", "5", "tiny", "null", "[0,1]", "{a: 1}", "0.5", "abc", "${seed}"])
    return f"{key}{draw(st.sampled_from(['=', '=', '=', '', '@']))}{draw(st.one_of(plain, texts))}"


def as_typed(verb, *given):
    """The configuration of a command line, or the message that its user sees."""
    try:
        return compose_config(verb, *given)
    except (HydraException, OmegaConfBaseException) as error:
        raise ExamError(explain(error, verb)) from None


def test_command_lines():
    def one(given, verb, is_usual):
        usual = ["ckpt=run"] if verb == "infer" else []
        given = given if not is_usual else []
        return outcome(lambda: as_typed(verb, *usual, *given)) is not None

    verbs = st.sampled_from(["train", "infer"])
    fuzzed(st.lists(overrides(), max_size=2), verbs, st.booleans(), read=one, examples=FEW)


def test_replies():
    generator = Generator(options=3)
    short = words.filter(lambda text: len(text) < 1000)
    three = {"min_size": 3, "max_size": 3}
    distinct = st.lists(short, **three, unique_by=lambda t: " ".join(t.lower().split()))
    fields = {"question": short, "options": distinct, "answer": st.integers(0, 2)}
    asked_for = st.fixed_dictionaries(fields)

    def one(question, before, data):
        reply = {"questions": [question]}
        kind = data.draw(st.sampled_from(["whole", "whole", "value", "bytes", "text"]))
        if kind == "value":
            question[data.draw(st.sampled_from([*question, "more"]))] = data.draw(values)
        written = json.dumps(reply, ensure_ascii=data.draw(st.booleans()))
        if kind == "bytes":
            written = data.draw(damaged(written.encode())).decode(errors="surrogateescape")
        if kind == "text":
            written = data.draw(texts)
        found = None
        with suppress(ValueError):
            (found,) = parse_response(re.sub("[{}]", "", before) + written, generator)
        if found is None:
            return False
        assert len(found.options) == 3
        assert 0 <= found.answer < 3
        assert all(type(t) is str and t.strip() for t in (found.question, *found.options))
        if kind == "whole":
            assert found.model_dump() == question
        return True

    fuzzed(asked_for, texts, st.data(), read=one)


def test_journals_of_replies(tmp_path):
    path = tmp_path / "replies.jsonl"
    note = {"article": "a", "questions": [], "refused": [], "read": 1, "written": 1}

    def one(keys, data, is_damaged):
        rows = [{**note, "asked": key} for key in keys]
        written = as_jsonl([{**row, "sha256": digest(row)} for row in rows])
        if is_damaged:
            written = data.draw(damaged(written + as_jsonl([data.draw(values)])))
        path.write_bytes(written)
        found = ReplyCache(path).rows
        assert is_damaged or list(found) == list(dict.fromkeys(keys))
        return True

    fuzzed(st.lists(texts, max_size=3), st.data(), st.booleans(), read=one)


class Scripts(HTMLParser):
    """Counts what a page could run or fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found += [tag] if tag in ("script", "img", "iframe", "link", "object") else []
        self.found += [name for name, _ in attrs if name.startswith("on") or name == "src"]

    def handle_data(self, data):
        self.texts.append(data)


def test_reports(tmp_path):
    path = tmp_path / "report.html"

    def one(title, name, prompt):
        row = {"system": name, "n": 1, "map_at_3": 1.0, "ci": [0.0, 1.0]}
        pair = {"a": name, "b": prompt, "difference": 0.0, "ci": [0.0, 0.0]}
        results = {"rows": [row], "paired": [pair], "seconds": {name: 1.0}}
        asked_about = {"id": name, "prompt": prompt, "options": [title, prompt]}
        write_page(path, Page(title, [(name, prompt)], results, questions=[asked_about]))
        page = path.read_bytes().decode()
        parser = Scripts()
        parser.feed(page)
        assert parser.found == ["script"]
        packed = re.search(r'<template id="data">([^<]*)</template>', page)[1]
        assert json.loads(gzip.decompress(base64.b64decode(packed)))["questions"] == [asked_about]
        return True

    fuzzed(texts, texts, texts, read=one)


def test_submissions_give_every_id_back(tmp_path):
    path = tmp_path / "s.csv"

    def one(ids):
        write_submission(path, ids, np.tile([0.0, 2.0, 1.0], (len(ids), 1)), 3)
        with path.open(encoding="utf-8", newline="") as file:
            _, *rows = csv.reader(file)
        assert rows == [[key, "B C A"] for key in ids]
        return True

    fuzzed(st.lists(words, min_size=1, max_size=5, unique=True), read=one)
