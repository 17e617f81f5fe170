"""Two-stage retrieval against the open-book notebooks' own way, side by side in one run.

    python benchmarks/notebook_retrieval.py DATA [--questions N] [--rounds 3]

DATA (or EXAM_DATA) holds `exam/{train,valid,test}.csv` and `wikipedia/*.parquet` with
`wiki_2023_index.parquet`. Every timed run has a process of its own, and the sides take turns:

- `notebook`: the published kernels' steps, plainly written;
- `exact`: this project with the same numbers (float32, 384 tokens, every sentence encoded);
- `recommended`: this project's `retriever=two_stage_fast` as it is configured.

Given to each, and not timed: its index of article leads, the imports, the loaded encoder.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from side_by_side import measured, median

FILES = ("train.csv", "valid.csv", "test.csv")
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
SETTINGS = {
    "exact": ["retriever=two_stage", "encoder.max_length=384", "encoder.dtype=float32"],
    "recommended": ["retriever=two_stage_fast"],
}
MINILM_ARTICLES, MINILM_SENTENCES, BATCH = 3, 5, 16


# The notebook's way.


def notebook_encoder() -> Any:
    """MiniLM as the notebooks load it, after a first call."""
    from sentence_transformers import SentenceTransformer

    from exam.weights import locate

    model = SentenceTransformer(locate(MODEL), model_kwargs={"dtype": "float32"})
    model.max_seq_length = 384
    model.encode(["first use"], normalize_embeddings=True)
    return model


def notebook_encode(model: Any, texts: list[str]) -> Any:
    """Unit vectors, sixteen texts at a time."""
    return model.encode(texts, batch_size=BATCH, normalize_embeddings=True, show_progress_bar=False)


def notebook_index(data: Path, work: Path) -> dict[str, Any]:
    """The exact index over title and first sentence that the notebooks are given."""
    import faiss
    import pyarrow.parquet as pq

    from exam.corpus import Article, lead

    rows = pq.read_table(data / "wikipedia" / "wiki_2023_index.parquet").to_pylist()
    articles: dict[str, dict[str, Article]] = {}
    for name in sorted({row["file"] for row in rows}):
        table = pq.read_table(data / "wikipedia" / name, columns=["id", "title", "text"])
        articles[name] = {row["id"]: Article(**row) for row in table.to_pylist()}
    leads = [lead(articles[row["file"]][row["id"]]) for row in rows]
    model = notebook_encoder()

    def build() -> None:
        vectors = notebook_encode(model, leads)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(work / "notebook.faiss"))

    return measured(build)[1]


def notebook(data: Path, work: Path, limit: int | None) -> dict[str, Any]:
    """The notebook's run: seconds, memory, and the passages of each question."""
    import faiss
    import pandas as pd
    from blingfire import text_to_sentences_and_offsets

    model = notebook_encoder()

    def run() -> list[list[dict[str, Any]]]:
        frames = [pd.read_csv(data / "exam" / f, keep_default_na=False) for f in FILES]
        questions = pd.concat(frames, ignore_index=True).head(limit or sum(map(len, frames)))
        # 1. Articles near the prompts.
        index = faiss.read_index(str(work / "notebook.faiss"))
        prompts = notebook_encode(model, questions.prompt.tolist())
        _, found = index.search(prompts, MINILM_ARTICLES)
        # 2. Their files and ids.
        where = pd.read_parquet(
            data / "wikipedia" / "wiki_2023_index.parquet", columns=["id", "file"]
        )
        parts = []
        for number, rows in enumerate(found):
            part = where.loc[rows].copy()
            part["prompt_id"] = number
            parts.append(part)
        chosen = pd.concat(parts).reset_index(drop=True)
        wanted = chosen[["id", "file"]].drop_duplicates().sort_values(["file", "id"])
        # 3. Their texts, a whole file at a time.
        texts = []
        for file in wanted.file.unique():
            ids = wanted[wanted.file == file]["id"].tolist()
            table = pd.read_parquet(data / "wikipedia" / file, columns=["id", "text"])
            texts.append(table[table["id"].isin(ids)].copy())
        articles = pd.concat(texts).reset_index(drop=True)
        # 4. Their sentences.
        sentences = []
        for article in articles.to_dict("records"):
            _, offsets = text_to_sentences_and_offsets(article["text"])
            for start, end in offsets:
                if end - start > 3:
                    text = article["text"][start:end]
                    sentences.append(
                        {"document_id": article["id"], "text": text, "offset": (start, end)}
                    )
        frame = pd.DataFrame(sentences)
        # 5. Their vectors, and those of prompt and options.
        vectors = notebook_encode(model, frame.text.tolist())
        options = questions[list("ABCDE")].apply(" ".join, axis=1)
        queries = notebook_encode(model, (questions.prompt + " " + options).tolist())
        # 6. Each question among its own sentences.
        passages, contexts = [], []
        for number in range(len(questions)):
            own = chosen[chosen.prompt_id == number]["id"].unique()
            rows = frame[frame.document_id.isin(own)].index.to_numpy()
            flat = faiss.IndexFlatIP(vectors.shape[1])
            flat.add(vectors[rows])
            scores, near = flat.search(queries, MINILM_SENTENCES)
            best = [(i, s) for i, s in zip(near[number], scores[number], strict=True) if i >= 0]
            kept = [(frame.loc[rows[i]], float(score)) for i, score in best]
            passages.append([{"article_id": str(s.document_id), "text": s.text} for s, _ in kept])
            contexts.append(" ".join(s.text for s, _ in kept))
        # 7. The file.
        questions.assign(context=contexts).to_csv(work / "notebook.csv", index=False)
        return passages

    passages, figures = measured(run)
    return {**figures, "passages": passages}


# Ours.


def configured(name: str, data: Path, outputs: Path, limit: int | None) -> Any:
    """A configuration of `retrieve.py`."""
    from exam.compose import composed

    return composed(
        "retrieve",
        "data=kaggle",
        "corpus=wikipedia",
        f"data.dir={data / 'exam'}",
        "data.train=null",
        "data.valid=null",
        f"data.test=[{','.join(FILES)}]",
        f"data.limit={limit or 'null'}",
        f"corpus.dir={data / 'wikipedia'}",
        f"outputs={outputs}",
        *SETTINGS[name],
    )


def retrieval_of(config: Any) -> Any:
    """The configured retrieval, its encoder loaded and used once."""
    from exam.retrieval.retrieval import Retrieval

    found = Retrieval.of(config)
    found.sentence_encoder.encode(["first use"])
    return found


def ours_index(name: str, data: Path, work: Path) -> dict[str, Any]:
    """Build the index of one setting."""
    retrieval = retrieval_of(configured(name, data, work / name, None))
    return measured(lambda: retrieval.article_index)[1]


def ours(name: str, data: Path, work: Path, limit: int | None, change: bool) -> dict[str, Any]:
    """One run: seconds, of which encoding, memory, and the passages of each question."""
    from datasets import Dataset

    from exam.question_rows import FEATURES
    from exam.questions import read
    from exam.retrieval.contexts import read_contexts

    config = configured(name, data, work / name, limit)
    retrieval = retrieval_of(config)
    encoder = type(retrieval.sentence_encoder)
    plain, spent = encoder.encode, [0.0]

    def timed(self: Any, texts: Any) -> Any:
        start = time.perf_counter()
        try:
            return plain(self, texts)
        finally:
            spent[0] += time.perf_counter() - start

    encoder.encode = timed

    def run() -> Any:
        questions = read(config.data, config.data.test)
        if change:
            rows = questions.to_list()
            rows[0]["prompt"] += " Answer with care."
            questions = Dataset.from_list(rows, features=FEATURES)
        return questions, retrieval.contexts(questions, "bench")

    (questions, stage), figures = measured(run)
    found = read_contexts(stage)
    passages = [
        [{"article_id": p["article_id"], "text": p["text"]} for p in found.get(key, [])]
        for key in questions["id"]
    ]
    return {
        **figures,
        "encode_seconds": spent[0],
        "dtype": retrieval.sentence_encoder.dtype.value,
        "reused": stage.reused,
        "passages": passages,
    }


# Both.


def quality(data: Path, work: Path, limit: int | None, passages: list[Any]) -> dict[str, Any]:
    """Recall and answer support of passages, each over the questions where it is known."""
    from exam.questions import read
    from exam.retrieval.evaluation import (
        figures,
        option_support,
        question_scores,
        words,
    )

    config = configured("exact", data, work / "exact", limit)
    questions = read(config.data, config.data.test)
    retrieval = retrieval_of(config)
    wanted = {w for q in questions for option in q["options"] for w in words(option)}
    idf = retrieval.rarity.of(wanted)
    contexts = {
        key: [{**p, "rank": rank} for rank, p in enumerate(own, 1)]
        for key, own in zip(questions["id"], passages, strict=True)
    }
    support = option_support(questions, contexts, idf)
    scores = question_scores(questions, contexts, support)
    wanted_scores = ("recall_at_1", "recall_at_5", "supported")
    return {name: figures(scores[name]) for name in wanted_scores if name in scores}


def identical(ours: list[Any], theirs: list[Any]) -> dict[str, float]:
    """Shares of questions whose five sentences are the same, in their order and as sets.

    The notebook may list a sentence twice that stands in two articles; ours never does. So there
    are also shares over the questions where it does not, and that of all questions whose distinct
    sentences are the first of ours.
    """
    pairs = [
        ([p["text"] for p in a[:MINILM_SENTENCES]], [p["text"] for p in b])
        for a, b in zip(ours, theirs, strict=True)
    ]
    single = [(a, b) for a, b in pairs if len(set(b)) == len(b)]
    distinct = [(a, list(dict.fromkeys(b))) for a, b in pairs]
    return {
        "lists": statistics.mean(a == b for a, b in pairs),
        "distinct": statistics.mean(a[: len(b)] == b for a, b in distinct),
        "without_repeats": len(single),
        "lists_without_repeats": statistics.mean(a == b for a, b in single),
        "sets_without_repeats": statistics.mean(set(a) == set(b) for a, b in single),
    }


def worker(job: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One job of one process."""
    import torch
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]
    torch.set_num_threads(arguments.threads)
    data, work, limit = arguments.data, arguments.work, arguments.questions
    name, _, part = job.partition("-")
    if name == "notebook":
        return notebook_index(data, work) if part == "index" else notebook(data, work, limit)
    if part == "index":
        return ours_index(name, data, work)
    return ours(name, data, work, limit, part == "changed")


def started(job: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """A job in a fresh process."""
    threads = str(arguments.threads)
    path = arguments.work / f"{job}.json"
    command = [sys.executable, __file__, str(arguments.data), "--work", str(arguments.work)]
    command += ["--worker", job, "--threads", threads]
    command += ["--questions", str(arguments.questions)] if arguments.questions else []
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(command, check=True, env=environment)
    found: dict[str, Any] = json.loads(path.read_text())
    brief = {k: round(v, 2) for k, v in found.items() if isinstance(v, float)}
    sys.stderr.write(f"{job}: {brief}\n")
    return found


def forget(work: Path, name: str) -> None:
    """Take away what an earlier round left, but for the index."""
    for folder in ("contexts", "embeddings"):
        shutil.rmtree(work / name / folder, ignore_errors=True)


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every round of every side, and what they come to."""
    building = {
        name: started(f"{name}-index", arguments) for name in ("notebook", "exact", "recommended")
    }
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        for job in ("notebook", *(f"{n}{p}" for n in SETTINGS for p in ("", "-again", "-changed"))):
            if job in SETTINGS:
                forget(arguments.work, job)
            runs.setdefault(job, []).append(started(job, arguments))
    cut = {name: [p[:MINILM_SENTENCES] for p in runs[name][-1]["passages"]] for name in SETTINGS}
    lists = {"notebook": runs["notebook"][-1]["passages"], **cut}
    scores = {
        name: quality(arguments.data, arguments.work, arguments.questions, passages)
        for name, passages in lists.items()
    }
    peer = median(runs["notebook"], "seconds")
    ratios: dict[str, Any] = {}
    for name in SETTINGS:
        ratios |= {
            f"{name}_cold": peer / median(runs[name], "seconds"),
            f"{name}_again": peer / median(runs[f"{name}-again"], "seconds"),
            f"{name}_changed": peer / median(runs[f"{name}-changed"], "seconds"),
            f"{name}_memory": median(runs[name], "mib") / median(runs["notebook"], "mib"),
            f"{name}_identical": identical(lists[name], lists["notebook"]),
        }
        for metric in scores["notebook"]:
            difference = scores[name][metric]["value"] - scores["notebook"][metric]["value"]
            ratios[f"{name}_{metric}_difference"] = difference
    kept = ("seconds", "cpu_seconds", "encode_seconds", "mib")
    return {
        "questions": len(lists["notebook"]),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "dtype": {name: runs[name][-1]["dtype"] for name in SETTINGS},
        "ratios": ratios,
        "runs": {
            job: [{k: r[k] for k in kept if k in r} for r in rounds] for job, rounds in runs.items()
        },
        "quality": scores,
        "building": building,
    }


def main() -> None:
    """Parse the command line; compare, or do one job of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", type=Path, default=os.environ.get("EXAM_DATA"))
    parser.add_argument("--questions", type=int, help="only the first N questions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("outputs/bench/notebook_retrieval"))
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/bench/notebook_retrieval.json")
    )
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give the folder of questions and articles, or set EXAM_DATA")
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.worker:
        found = worker(arguments.worker, arguments)
        (arguments.work / f"{arguments.worker}.json").write_text(json.dumps(found))
        return
    result = compare(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    sys.stdout.write(json.dumps({k: result[k] for k in ("questions", "ratios")}, indent=2) + "\n")
    sys.stdout.write(f"{arguments.output}\n")


if __name__ == "__main__":
    main()
