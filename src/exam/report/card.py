"""Write a run's model card, and upload the run to the hub."""

from pathlib import Path
from typing import Any

from exam.config import CorpusFormat, Train, trainer_values
from exam.core.artifacts import Stage
from exam.core.errors import ExamError
from exam.core.files import read_json, write_atomically
from exam.core.logging import print_result
from exam.core.trainer import RESULTS
from exam.core.version import __version__
from exam.evaluation.learned import LEARNED
from exam.metrics import metric_name, metric_title
from exam.report.page import load_template

CARD = "README.md"
NOT_PUSHED = ("checkpoints/*", "*.lock", "verified.json", LEARNED)
LICENCES = {
    CorpusFormat.demo: "Passages: lead sections of English Wikipedia, CC BY-SA 4.0.",
    CorpusFormat.wikipedia: "Passages: English Wikipedia, CC BY-SA 4.0.",
}
UNKNOWN = "Passages: the licence of your corpus."


def write_card(stage: Stage, config: Train) -> None:
    """Write `README.md` into a run's folder, from its results."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results, base = read_json(stage.folder / RESULTS), config.model.name_or_path
    reader = results["rows"][-1]
    searches = config.retriever.kind.searches
    metric = metric_name(config.metric.k)
    score = EvalResult(
        task_type="multiple-choice",
        dataset_type=config.data.name,
        dataset_name=config.data.name,
        metric_type=metric,
        metric_value=round(reader[metric], 4),
    )
    data = ModelCardData(
        library_name="transformers",
        base_model=base if base and not Path(base).exists() else None,
        model_name=config.name,
        tags=["multiple-choice", "open-book" if searches else "closed-book"],
        eval_results=[score],
    )
    text = load_template("card.md.jinja", escapes=False).render(
        card_data=data.to_yaml(),
        name=config.name,
        version=__version__,
        base=base or config.model.architecture or config.model.kind.value,
        open_book=searches,
        retriever=config.retriever.name,
        data=config.data.name,
        n=reader["n"],
        metric=metric,
        metric_title=metric_title(metric),
        rows=results["rows"],
        paired=results["paired"],
        warnings=results.get("warnings", []),
        facts=_facts(config),
        licences=_licences(config),
    )
    with write_atomically(stage.folder / CARD) as temporary:
        ModelCard(text).save(temporary)


def _facts(config: Train) -> list[tuple[str, Any]]:
    trainer = trainer_values(config.trainer)
    listed = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
    commit = config.model.revision
    return [
        *([("checkpoint commit", commit)] if commit else []),
        ("retriever", config.retriever.name),
        ("corpus", config.corpus.name if config.retriever.kind.searches else "none"),
        ("passages read", config.context.passages(training=False)),
        ("tokens", config.model.max_length),
        ("tuning", config.tuning.name),
        ("seed", config.seed),
        *((name, trainer[name]) for name in listed if name in trainer),
    ]


def _licences(config: Train) -> list[str]:
    lines = ["Weights: the licence of the checkpoint that they were trained from."]
    if config.retriever.kind.searches:
        parts = [config.corpus, *config.corpus.extra_corpora]
        lines += dict.fromkeys(LICENCES.get(part.format, UNKNOWN) for part in parts)
    return lines


def push(folder: Path, config: Train) -> None:
    """Upload a run's folder, private unless `hub.private=false`.

    Raises:
        ExamError: the hub refuses or is out of reach, or the repository is public.
    """
    from huggingface_hub import HfApi

    hub, api = config.hub, HfApi()
    try:
        api.create_repo(str(hub.repo), private=hub.private, exist_ok=True)
        is_exposed = hub.private and not api.repo_info(str(hub.repo)).private
        commit = (
            None
            if is_exposed
            else api.upload_folder(
                repo_id=str(hub.repo),
                folder_path=folder,
                ignore_patterns=list(NOT_PUSHED),
                commit_message=f"{config.name}: {folder.name}",
            )
        )
    except Exception as error:  # noqa: BLE001 client, transport and files share no base class
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ExamError(
            f"{folder} could not be pushed to {hub.repo}: {reason}\n"
            "The run is finished. Log in (hf auth login), and run the same command again."
        ) from None
    if commit is None:
        raise ExamError(
            f"{hub.repo} exists and is public; nothing was pushed.\n"
            "Set hub.private=false to push to it, or another hub.repo=<owner>/<name>"
        )
    print_result(str(commit.commit_url))
