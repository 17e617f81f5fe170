"""What each reader made of the questions, and where that came from."""

from dataclasses import dataclass, replace
from pathlib import Path

from exam.core.files import file_digest
from exam.core.stage import Stage, finished
from exam.evaluation.predictions import Predictions, align, read_all_predictions
from exam.evaluation.results import PREDICTIONS, load_answers, read_k
from exam.pipelines.infer import Answered


@dataclass(frozen=True)
class Member:
    """What one reader made of the questions, and where that came from."""

    name: str
    found: Predictions
    source: str  # a folder or file, for messages
    hash: str
    seconds: float = 0.0  # a question
    stages: tuple[Stage, ...] = ()
    k: int | None = None  # of MAP@k, as the run remembers it; None for a file


def member_of(done: Answered) -> Member:
    """One run's answers as a member."""
    found, folder = load_answers(done.stage.folder), done.stage.folder
    cost = done.stage.seconds / len(done.questions)
    stages = (*done.before, done.stage)
    return Member(found.name, found, str(folder), done.stage.hash, cost, stages)


def saved(given: list[str]) -> list[Member]:
    """The members that prediction files, or the folders of runs, hold."""
    members = []
    for place in map(Path, given):
        stage = finished(place) if place.is_dir() else None
        path = place / PREDICTIONS if stage else place
        for found in read_all_predictions(path):
            cost = stage.seconds / len(found.ids) if stage and stage.kind == "infer" else 0.0
            key = f"{file_digest(path)} {found.name}"
            k = read_k(stage) if stage else None
            members.append(Member(found.name, found, str(path), key, cost, k=k))
    return members


def aligned_members(members: list[Member]) -> list[Member]:
    """The members with their answers in the order of the first one's questions."""
    found = align([m.found for m in members], [m.source for m in members])
    return [replace(m, found=one) for m, one in zip(members, found, strict=True)]


def numbered_names(members: list[Member]) -> list[str]:
    """Each member's name, with a number where it is not the only one of that name."""
    plain_names = [m.name for m in members]
    return [
        f"{name} ({place})" if plain_names.count(name) > 1 else name
        for place, name in enumerate(plain_names, 1)
    ]
