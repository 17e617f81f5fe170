"""Refuse values, and pairs of values, with which nothing can be retrieved."""

from exam.config import Index, Reranker, Retriever, RetrieverKind
from exam.errors import ExamError


def check_index(index: Index) -> None:
    """Refuse an index that may take no memory."""
    if index.memory_gib <= 0:
        raise ExamError(f"index.memory_gib={index.memory_gib:g} must be more than 0.")


def check_retriever(retriever: Retriever) -> None:
    """Refuse a search for nothing, and a fusion of nothing."""
    if retriever.kind.searches and min(retriever.articles, retriever.depth) < 1:
        raise ExamError(
            f"retriever.articles={retriever.articles} and retriever.depth={retriever.depth} must "
            "be at least 1.\nFor a closed-book reader choose retriever=none."
        )
    if retriever.kind is RetrieverKind.hybrid:
        _check_members(retriever)


def _check_members(retriever: Retriever) -> None:
    """A hybrid fuses at least two rankings that search, and weights name its members."""
    members = retriever.members
    wrong = [name for name, m in members.items() if not m.kind.searches or m.kind is retriever.kind]
    if wrong or len(members) < 2:
        raise ExamError(
            f"retriever=hybrid fuses {', '.join(members) or 'nothing'}; it needs two or more of "
            "two_stage, bm25, tfidf, passages.\n"
            "Add one: +retriever@retriever.members.tfidf=tfidf"
        )
    unknown = [name for name in retriever.weights if name not in members]
    if unknown:
        raise ExamError(
            f"retriever.weights.{unknown[0]} is the weight of no member.\n"
            f"The members are {', '.join(members)}."
        )


def check_reranker(reranker: Reranker, retriever: Retriever) -> None:
    """Refuse a reranker without passages to reorder."""
    if reranker.ckpt is None:
        return
    if not retriever.kind.searches:
        raise ExamError(
            f"reranker={reranker.name} has nothing to reorder: retriever={retriever.name}.\n"
            "Choose a retriever that searches, or reranker=none."
        )
    if reranker.depth < 1:
        raise ExamError(f"reranker.depth={reranker.depth} must be at least 1.")
    if not 0 < reranker.weight <= 1:
        raise ExamError(
            f"reranker.weight={reranker.weight} is no share of the new order.\n"
            "Give more than 0, and at most 1 for the reranker alone."
        )
    if reranker.depth > retriever.depth:
        raise ExamError(
            f"reranker.depth={reranker.depth} asks for more passages than "
            f"retriever.depth={retriever.depth} keeps.\n"
            f"Set retriever.depth={reranker.depth}, or a smaller reranker.depth."
        )
