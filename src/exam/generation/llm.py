"""Five-option questions written by a language model, one article at a time.

Every article's questions are noted as soon as they are written, so that an interrupted run pays
for nothing twice.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from heapq import nsmallest
from itertools import islice
from math import ceil
from os import SEEK_END
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any

from datasets import Dataset, concatenate_datasets
from filelock import FileLock

from exam.config import Generator, LanguageModel, plain
from exam.core.checkpoints import checkpoint_fingerprint
from exam.core.files import digest
from exam.core.logging import progress_bar
from exam.data.corpus import Article, CorpusFile, iter_articles
from exam.data.schema import FEATURES, LETTERS
from exam.data.splits import group_near_duplicates
from exam.generation.clients import ChatModel, open_llm
from exam.generation.prompts import excerpt, parse_response, request

log = logging.getLogger(__name__)

FOLDER = "replies"  # of the outputs: what models wrote, whatever became of it
JOURNAL = "replies.jsonl"
UNIMPORTANT = (
    "concurrency",
    "timeout",
    "retries",
    "usd_per_million_input_tokens",
    "usd_per_million_output_tokens",
    "attempts",
)  # for what a model writes
SUM = "sha256"  # of a line's other values
NOTED = {"asked", "article", "questions", "refused", "read", "written"}
SPARE = 4  # articles looked up for each one needed: some are too short, some replies are invalid


@dataclass(frozen=True)
class Request:
    """What a model is asked about an article, and what tells it from everything else asked."""

    article: Article
    messages: list[dict[str, str]]
    key: str


@dataclass
class ReplyCache:
    """What was written so far, by what was asked; the file is only ever added to."""

    path: Path
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    @classmethod
    def read(cls, path: Path) -> "ReplyCache":
        """The notes of an interrupted run; a line that is not as it was written is left out."""
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        found = [_note(line) for line in lines if line]
        rows = {row["asked"]: row for row in found if row is not None}
        if None in found:
            broken = found.count(None)
            log.warning("generate: %d lines of %s are broken, and left out", broken, path)
        return cls(path, rows)

    def settled(self, asked: str, attempts: int) -> bool:
        """Whether an article has its questions, or was asked about often enough."""
        row = self.rows.get(asked)
        return row is not None and bool(row["questions"] or len(row["refused"]) >= attempts)

    def add(self, row: dict[str, Any]) -> None:
        """Note one article; a line that was cut short before is ended first."""
        line = f"{json.dumps({**row, SUM: digest(row)}, ensure_ascii=False)}\n".encode()
        with self.lock, self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
        self.rows[row["asked"]] = row


def _note(line: bytes) -> dict[str, Any] | None:
    """What a line of the journal says; None where it is not as it was written."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        row: dict[str, Any] = json.loads(line)
        signed = row.pop(SUM, None) == digest(row)
        return row if signed and row.keys() == NOTED and isinstance(row["asked"], str) else None
    return None


def questions(
    files: list[CorpusFile],
    generator: Generator,
    left_out: set[str],
    exams: Dataset,
    outputs: Path,
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    """Up to `n` questions in a seeded order of articles, and what writing them took.

    Near-repetitions of each other, and of the questions of `exams`, are left out. What the model
    wrote is kept below `outputs`, and serves every later run that asks the same.
    """
    folder = outputs / FOLDER / digest(llm_key(generator.llm))[:8]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        return _questions(files, generator, left_out, exams, ReplyCache.read(folder / JOURNAL))


def llm_key(writer: LanguageModel) -> dict[str, Any]:
    """What determines what a model writes."""
    own = {k: v for k, v in plain(writer).items() if k not in UNIMPORTANT}
    return {**own, "weights": checkpoint_fingerprint(writer.checkpoint)} if writer.local else own


def _questions(
    files: list[CorpusFile],
    generator: Generator,
    left_out: set[str],
    exams: Dataset,
    journal: ReplyCache,
) -> tuple[list[dict[str, str]], dict[str, Any]]:
    log.info("generate: %s holds %d replies", journal.path, len(journal.rows))
    chosen = _chosen(files, generator, left_out)
    order: list[Request] = []
    model: ChatModel | None = None
    with progress_bar("questions", generator.num_questions) as bar:
        kept: list[dict[str, str]] = []
        repeated = 0
        while len(kept) < generator.num_questions:
            needed = ceil((generator.num_questions - len(kept)) / generator.llm.per_article)
            block = list(islice(chosen, needed))
            if not block:
                break
            order += block
            attempts = generator.llm.attempts
            unasked = [one for one in block if not journal.settled(one.key, attempts)]
            if unasked:
                model = model or open_llm(generator.llm, generator.seed)
                _ask(model, unasked, generator, journal)
            written = [
                question
                for one in order
                for question in _laid_out(one.article.id, journal.rows[one.key], generator.seed)
            ]
            kept = _kept(written, exams)
            repeated = len(written) - len(kept)
            bar.update(min(len(kept), generator.num_questions) - bar.n)
    facts = _facts([journal.rows[one.key] for one in order], generator)
    log.info("generate: %s", " · ".join(f"{name} {value}" for name, value in facts.items()))
    made = [
        {**row, "id": f"llm-{number:05d}"}
        for number, row in enumerate(kept[: generator.num_questions])
    ]
    return made, {**facts, "repeated": repeated}


def _chosen(files: list[CorpusFile], generator: Generator, left_out: set[str]) -> Iterator[Request]:
    """What is asked about articles with enough text, in a seeded order."""
    wanted = SPARE * ceil(generator.num_questions / generator.llm.per_article)

    def drawn(article: Article) -> bytes:
        return blake2b(f"{generator.seed}:{article.id}".encode(), digest_size=16).digest()

    every = (article for file in files for article in iter_articles(file))
    fit = (article for article in every if not {article.id, article.title} & left_out)
    for article in nsmallest(wanted, fit, key=drawn):
        text = excerpt(article, generator)
        if text is not None:
            messages = request(article, text, generator)
            yield Request(article, messages, digest(messages)[:16])


def _ask(model: ChatModel, block: list[Request], generator: Generator, journal: ReplyCache) -> None:
    """Have questions written about some articles; each is noted when it is done."""

    def ask(one: Request) -> None:
        journal.add(_written(model, one, generator, journal.rows.get(one.key, {})))

    with ThreadPoolExecutor(1 if generator.llm.local else generator.llm.concurrency) as pool:
        try:
            for _ in pool.map(ask, block):
                pass
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _written(
    model: ChatModel, one: Request, generator: Generator, before: dict[str, Any]
) -> dict[str, Any]:
    """An article's note: its questions, or why every reply was refused, those `before` too."""
    note: dict[str, Any] = {"asked": one.key, "article": one.article.id, "questions": []}
    note |= {"refused": [], "read": 0, "written": 0, **before}
    while not note["questions"] and len(note["refused"]) < generator.llm.attempts:
        try:
            reply = model.reply(one.messages)
            note["read"] += reply.read
            note["written"] += reply.written
            note["questions"] = [q.model_dump() for q in parse_response(reply.text, generator)]
        except ValueError as error:
            note["refused"] = [*note["refused"], str(error)]
    return note


def _laid_out(article: str, note: dict[str, Any], seed: int) -> Iterator[dict[str, str]]:
    """An article's questions with their options in an order of their own: models favour places."""
    for number, one in enumerate(note["questions"]):
        order = list(range(len(one["options"])))
        Random(f"{seed}:{article}:{number}").shuffle(order)
        options = [" ".join(one["options"][i].split()) for i in order]
        yield {
            "id": "",
            "prompt": " ".join(one["question"].split()),
            **dict(zip(LETTERS, options, strict=False)),
            "answer": LETTERS[order.index(one["answer"])],
            "article": article,
        }


def _kept(written: list[dict[str, str]], exams: Dataset) -> list[dict[str, str]]:
    """The questions that nearly repeat none before them, and none of the exams."""
    if not written:
        return []
    rows = [
        {
            "id": str(number),
            "prompt": row["prompt"],
            "options": [row[letter] for letter in LETTERS if letter in row],
            "label": None,
            "context": None,
            "article": None,  # two questions about one article are no repetition
        }
        for number, row in enumerate(written)
    ]
    questions = Dataset.from_list(rows, features=FEATURES)
    group = group_near_duplicates(concatenate_datasets([exams, questions]))
    seen = set(group[: len(exams)].tolist())
    kept = []
    for row, own in zip(written, group[len(exams) :].tolist(), strict=True):
        if own not in seen:
            kept.append(row)
        seen.add(own)
    return kept


def _facts(rows: list[dict[str, Any]], generator: Generator) -> dict[str, Any]:
    """What was asked, refused and paid; of all articles that the questions come from."""
    reasons = Counter(reason for row in rows for reason in row["refused"])
    read, written = (sum(row[name] for row in rows) for name in ("read", "written"))
    found: dict[str, Any] = {
        "articles": len(rows),
        "without": sum(not row["questions"] for row in rows),
        "refused": sum(reasons.values()),
        "tokens_read": read,
        "tokens_written": written,
    }
    for reason, times in reasons.most_common(3):
        log.info("generate: %d replies refused: %s", times, reason)
    paid = (
        read * generator.llm.usd_per_million_input_tokens
        + written * generator.llm.usd_per_million_output_tokens
    )
    return found | ({"cost": round(paid / 1e6, 4)} if paid else {})
