"""Write questions with a language model, one article at a time.

Every reply is cached at once, so that an interrupted run pays for none twice.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from hashlib import blake2b
from heapq import nsmallest
from itertools import islice
from math import ceil
from os import SEEK_END
from pathlib import Path
from random import Random
from threading import Lock
from typing import Any, NamedTuple

from datasets import Dataset, concatenate_datasets
from filelock import FileLock

from exam.config import Generator, LanguageModel, to_dict
from exam.core.checkpoints import checkpoint_fingerprint
from exam.core.files import digest
from exam.core.logging import progress_bar
from exam.data.articles import Article, CorpusFile, iter_articles
from exam.data.option_order import choose_order
from exam.data.schema import FEATURES, LETTERS
from exam.data.splits import group_near_duplicates
from exam.generation.clients import Endpoint, Local, open_llm
from exam.generation.prompts import excerpt, make_messages, parse_response

log = logging.getLogger(__name__)

FOLDER = "replies"  # of the outputs; holds refused replies too
FILE = "replies.jsonl"
NOT_IN_KEY = {
    "concurrency",
    "timeout",
    "retries",
    "usd_per_million_input_tokens",
    "usd_per_million_output_tokens",
    "attempts",
}
CHECKSUM = "sha256"  # of a line's other values
FIELDS = {"asked", "article", "questions", "refused", "read", "written"}
SPARE = 4  # articles drawn for each one needed: some are too short, some replies are refused
Rows = list[dict[str, str]]


class Request(NamedTuple):
    """The messages about an article; `key` is their hash."""

    article: Article
    messages: list[dict[str, str]]
    key: str


class ReplyCache:
    """The replies to each request so far, in a file that only grows."""

    def __init__(self, path: Path) -> None:
        """Read the replies of earlier runs, without damaged lines."""
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        rows = [_parse_line(line) for line in lines if line]
        if damaged := rows.count(None):
            log.warning("generate: %d lines of %s are broken, and left out", damaged, path)
        self.path, self.lock = path, Lock()
        self.rows = {row["asked"]: row for row in rows if row is not None}

    def add(self, row: dict[str, Any]) -> None:
        """Append a request's replies; end a line that an interrupted run cut short."""
        line = f"{json.dumps({**row, CHECKSUM: digest(row)}, ensure_ascii=False)}\n".encode()
        with self.lock, self.path.open("ab+") as file:
            if file.tell():
                file.seek(-1, SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
        self.rows[row["asked"]] = row


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Return a line's row, or None if it is damaged."""
    with suppress(ValueError, AttributeError, TypeError, RecursionError):
        row: dict[str, Any] = json.loads(line)
        is_intact = row.pop(CHECKSUM, None) == digest(row)
        return row if is_intact and row.keys() == FIELDS and isinstance(row["asked"], str) else None
    return None


def llm_key(llm: LanguageModel) -> dict[str, Any]:
    """Return what determines the model's replies."""
    key = {name: value for name, value in to_dict(llm).items() if name not in NOT_IN_KEY}
    return {**key, "weights": checkpoint_fingerprint(llm.checkpoint)} if llm.local else key


def generate_questions(
    files: list[CorpusFile],
    generator: Generator,
    excluded: set[str],
    exams: Dataset,
    outputs: Path,
) -> tuple[Rows, dict[str, Any]]:
    """Write up to `num_questions` questions about articles in a seeded order, and count the work.

    Drop near-duplicates of each other and of `exams`. Replies are cached below `outputs`, for
    every later run that sends the same requests.
    """
    folder = outputs / FOLDER / digest(llm_key(generator.llm))[:8]
    folder.mkdir(parents=True, exist_ok=True)
    number = generator.num_questions
    requests: list[Request] = []
    rows: Rows = []
    unique: Rows = []
    lock = FileLock(folder.with_suffix(".lock"))
    with lock, progress_bar("generated", number, "questions") as bar:
        replies = ReplyCache(folder / FILE)
        log.info("generate: %s holds %d replies", replies.path, len(replies.rows))
        open_once = cache(lambda: open_llm(generator.llm, generator.seed))
        drawn = _draw_requests(files, generator, excluded)
        while len(unique) < number:
            missing = ceil((number - len(unique)) / generator.llm.per_article)
            block = list(islice(drawn, missing))
            if not block:
                break
            _send(block, open_once, generator, replies)
            requests += block
            rows = [
                row
                for request in requests
                for row in _format_questions(request, replies.rows[request.key], generator.seed)
            ]
            unique = _deduplicate(rows, exams)
            bar.update(min(len(unique), number) - bar.n)
    counts = _count([replies.rows[request.key] for request in requests], generator.llm)
    log.info("generate: %s", " · ".join(f"{name} {value}" for name, value in counts.items()))
    numbered = [{**row, "id": f"llm-{i:05d}"} for i, row in enumerate(unique[:number])]
    return numbered, {**counts, "repeated": len(rows) - len(unique)}


def _draw_requests(
    files: list[CorpusFile], generator: Generator, excluded: set[str]
) -> Iterator[Request]:
    """Yield requests about articles with enough text, in a seeded order."""

    def draw(article: Article) -> bytes:
        return blake2b(f"{generator.seed}:{article.id}".encode(), digest_size=16).digest()

    number = SPARE * ceil(generator.num_questions / generator.llm.per_article)
    articles = (article for file in files for article in iter_articles(file))
    allowed = (a for a in articles if not {a.id, a.title} & excluded)
    for article in nsmallest(number, allowed, key=draw):
        text = excerpt(article, generator)
        if text is not None:
            messages = make_messages(article, text, generator)
            yield Request(article, messages, digest(messages)[:16])


def _send(
    block: list[Request],
    open_model: Callable[[], Endpoint | Local],
    generator: Generator,
    replies: ReplyCache,
) -> None:
    """Send each request until it has questions or no attempts are left; cache its replies."""
    settings = generator.llm

    def is_settled(row: dict[str, Any]) -> bool:
        return bool(row["questions"] or len(row["refused"]) >= settings.attempts)

    def send(request: Request, row: dict[str, Any]) -> None:
        while not is_settled(row):
            try:
                reply = model.reply(request.messages)
                row["read"] += reply.tokens_read
                row["written"] += reply.tokens_written
                row["questions"] = [q.model_dump() for q in parse_response(reply.text, generator)]
            except ValueError as error:
                row["refused"] = [*row["refused"], str(error)]
        replies.add(row)

    rows = [{**replies.rows.get(request.key, _empty_row(request))} for request in block]
    pending = [pair for pair in zip(block, rows, strict=True) if not is_settled(pair[1])]
    if pending:
        model = open_model()
        with ThreadPoolExecutor(1 if settings.local else settings.concurrency) as pool:
            list(pool.map(send, *zip(*pending, strict=True)))  # an error cancels those that wait


def _empty_row(request: Request) -> dict[str, Any]:
    row = {"asked": request.key, "article": request.article.id, "questions": [], "refused": []}
    return {**row, "read": 0, "written": 0}


def _format_questions(
    request: Request, reply: dict[str, Any], seed: int
) -> Iterator[dict[str, str]]:
    """Yield a reply's questions with shuffled options: models favour positions.

    Options whose order has a meaning keep it.
    """
    article = request.article.id
    for number, question in enumerate(reply["questions"]):
        order = list(range(len(question["options"])))
        Random(f"{seed}:{article}:{number}").shuffle(order)
        order = choose_order(question["options"], order)
        options = [" ".join(question["options"][i].split()) for i in order]
        yield {
            "id": "",
            "prompt": " ".join(question["question"].split()),
            **dict(zip(LETTERS, options, strict=False)),
            "answer": LETTERS[order.index(question["answer"])],
            "article": article,
        }


def _deduplicate(rows: Rows, exams: Dataset) -> Rows:
    """Drop near-duplicates of earlier rows and of the exams."""
    if not rows:
        return []
    # Without `article`: two questions about one article are not duplicates.
    options = [[row[letter] for letter in LETTERS if letter in row] for row in rows]
    questions = [
        {**dict.fromkeys(FEATURES), "prompt": row["prompt"], "options": texts}
        for row, texts in zip(rows, options, strict=True)
    ]
    written = Dataset.from_list(questions, features=FEATURES)
    groups = group_near_duplicates(concatenate_datasets([exams, written])).tolist()
    seen = set(groups[: len(exams)])
    unique = []
    for row, group in zip(rows, groups[len(exams) :], strict=True):
        if group not in seen:
            unique.append(row)
        seen.add(group)
    return unique


def _count(replies: list[dict[str, Any]], llm: LanguageModel) -> dict[str, Any]:
    """Count articles, refused replies, tokens and cost in US dollars, and log the main refusals."""
    refusals = Counter(reason for reply in replies for reason in reply["refused"])
    read, written = (sum(reply[name] for reply in replies) for name in ("read", "written"))
    for reason, count in refusals.most_common(3):
        log.info("generate: %d replies refused: %s", count, reason)
    cost = read * llm.usd_per_million_input_tokens + written * llm.usd_per_million_output_tokens
    return {
        "articles": len(replies),
        "without": sum(not reply["questions"] for reply in replies),
        "refused": refusals.total(),
        "tokens_read": read,
        "tokens_written": written,
        **({"cost": round(cost / 1e6, 4)} if cost else {}),
    }
