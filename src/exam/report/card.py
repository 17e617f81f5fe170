"""A run's model card, as the hub shows it, and the way there."""

from pathlib import Path
from typing import Any

from exam.config import CorpusFormat, Train, trainer_values
from exam.core.artifacts import Stage
from exam.core.errors import ExamError
from exam.core.files import read_json, write_atomically
from exam.core.logging import print_result
from exam.core.trainer import RESULTS
from exam.core.version import __version__

CARD = "README.md"
NOT_PUSHED = ("checkpoints/*", "*.lock", "verified.json")
OWN = "Passages: as the corpus's own; this project does not know it."
LICENCES = {
    CorpusFormat.demo: "Passages: lead sections of English Wikipedia, CC BY-SA 4.0.",
    CorpusFormat.wikipedia: "Passages: English Wikipedia, CC BY-SA 4.0.",
    CorpusFormat.jsonl: OWN,
    CorpusFormat.text: OWN,
}


def write_card(stage: Stage, config: Train) -> None:
    """Write `README.md` into a run's folder, from its results."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    results = read_json(stage.folder / RESULTS)
    rows, base = results["rows"], config.model.name_or_path
    own = rows[-1]
    searches = config.retriever.kind.searches
    metric = EvalResult(
        task_type="multiple-choice",
        dataset_type=config.data.name,
        dataset_name=config.data.name,
        metric_type="map_at_3",
        metric_value=round(own["map_at_3"], 4),
    )
    data = ModelCardData(
        language="en",
        library_name="transformers",
        base_model=base if base and not Path(base).exists() else None,
        model_name=config.name,
        tags=["multiple-choice", "open-book" if searches else "closed-book"],
        eval_results=[metric],
    )
    text = _template().render(
        card_data=data.to_yaml(),
        name=config.name,
        version=__version__,
        base=base or config.model.architecture or config.model.kind.value,
        open_book=searches,
        retriever=config.retriever.name,
        data=config.data.name,
        n=own["n"],
        rows=rows,
        paired=results["paired"],
        facts=_facts(config),
        licences=_licences(config),
    )
    with write_atomically(stage.folder / CARD) as temporary:
        ModelCard(text).save(temporary)


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(  # noqa: S701 of Markdown
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    path = Path(__file__).with_name("card.md.jinja")
    return environment.from_string(path.read_text(encoding="utf-8"))


def _facts(config: Train) -> list[tuple[str, Any]]:
    trainer = trainer_values(config.trainer)
    shown = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
    commit = config.model.revision
    return [
        *([("checkpoint commit", commit)] if commit else []),
        ("retriever", config.retriever.name),
        ("corpus", config.corpus.name if config.retriever.kind.searches else "none"),
        ("passages read", config.context.passages(training=False)),
        ("tokens", config.model.max_length),
        ("tuning", config.tuning.name),
        ("seed", config.seed),
        *((name, trainer[name]) for name in shown if name in trainer),
    ]


def _licences(config: Train) -> list[str]:
    found = ["Weights: those of the checkpoint they were trained from."]
    if config.retriever.kind.searches:
        parts = [config.corpus, *config.corpus.extra_corpora]
        found += dict.fromkeys(LICENCES[part.format] for part in parts)
    return found


def push(folder: Path, config: Train) -> None:
    """Upload a run's folder, private unless `hub.private=false`.

    Raises:
        ExamError: the hub cannot be reached, or refuses.
    """
    from huggingface_hub import HfApi

    hub, api = config.hub, HfApi()
    try:
        api.create_repo(str(hub.repo), private=hub.private, exist_ok=True)
        exposed = hub.private and not api.repo_info(str(hub.repo)).private
        found = None
        if not exposed:
            found = api.upload_folder(
                repo_id=str(hub.repo),
                folder_path=folder,
                ignore_patterns=list(NOT_PUSHED),
                commit_message=f"{config.name}: {folder.name}",
            )
    except Exception as error:  # noqa: BLE001 client, transport and files have none in common
        reason = (str(error) or repr(error)).splitlines()[0]
        raise ExamError(
            f"{folder} could not be pushed to {hub.repo}: {reason}\n"
            "The run is whole. Log in (hf auth login), and run the same command again."
        ) from None
    if found is None:
        raise ExamError(
            f"{hub.repo} is there already, and public; nothing was pushed.\n"
            "Set hub.private=false to push to it, or give another hub.repo=<owner>/<name>"
        )
    print_result(str(found.commit_url))
