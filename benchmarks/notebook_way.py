"""The open-book notebooks' retrieval: the published kernels' steps, plainly written."""

from pathlib import Path
from typing import Any

from side_by_side import measured

FILES = ("train.csv", "valid.csv", "test.csv")
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
MINILM_ARTICLES = 3
MINILM_SENTENCES = 5
BATCH = 16


def notebook_encoder() -> Any:
    """MiniLM as the notebooks load it, after a first call."""
    from sentence_transformers import SentenceTransformer

    from exam.core.packages import find_packaged_folder

    model = SentenceTransformer(str(find_packaged_folder(MODEL)), model_kwargs={"dtype": "float32"})
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

    from exam.data.articles import Article, title_and_first_sentence

    rows = pq.read_table(data / "wikipedia" / "wiki_2023_index.parquet").to_pylist()
    articles: dict[str, dict[str, Article]] = {}
    for name in sorted({row["file"] for row in rows}):
        table = pq.read_table(data / "wikipedia" / name, columns=["id", "title", "text"])
        articles[name] = {row["id"]: Article(**row) for row in table.to_pylist()}
    leads = [title_and_first_sentence(articles[row["file"]][row["id"]]) for row in rows]
    model = notebook_encoder()

    def build() -> None:
        vectors = notebook_encode(model, leads)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(work / "notebook.faiss"))

    return measured(build)[1]


def notebook(data: Path, work: Path, limit: int | None) -> dict[str, Any]:
    """The run: seconds, memory, and each question's passages; in one piece, as the cells are."""
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
