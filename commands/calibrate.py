"""Learns what a model's scores are worth, so that a search can say that there is no one like this.

    tpas calibrate --model MODEL --data_root PAB

From pairs that the model was not trained on it learns, by leaving persons out, the chance that the one asked
for is there, and how many images an answer needs to hold the right one as often as `tpas search --coverage`
says. Half of the persons are kept to measure it. The result is a small file of numbers. It lies in the
model's folder, where `tpas search` finds it, unless `--output` names another place, and is of that model and
shortlist alone. docs/trust.md says what it promises, and what not.

The test set is refused: what is chosen by it says nothing about it any more, and the challenge forbids it.
"""

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ..data.annotation_fields import EvaluatedSplit
from ..data.image_folders import FolderRules
from ..data.whole_files import check_place
from .command_line import CommandLine, CommandResult, WrongUsage
from .model_choice import ModelChoice
from .quick_imports import quick_imports

if TYPE_CHECKING:
    from ..search.calibration import Calibration

logger = logging.getLogger(__name__)

app = CommandLine("tpas calibrate", __doc__)


@app.command()
def calibrate(
    data_root: Annotated[Path, Option(help="pairs of images and texts, as of tpas evaluate")],
    choice: ModelChoice,
    rules: FolderRules,
    split: Annotated[EvaluatedSplit, Option(help="the test sets are refused")] = "validation",
    image_root: Annotated[
        Path | None,
        Option(help="folder of the images, if not as --data_root says (default: beside the table)"),
    ] = None,
    validation_fraction: Annotated[
        float | None,
        Option(help="share of train, by source video, as it was trained (default: that of its run, or 0.02)"),
    ] = None,
    max_validation_pairs: Annotated[
        int | None, Option(help="pairs at most (default: those of its run, or 2000)")
    ] = None,
    gallery: Annotated[
        Path | None,
        Option(
            help="images to add, so that it is as large as what is searched: a folder, or a list of files"
        ),
    ] = None,
    shortlist: Annotated[
        int, Option(help="images re-ranked for each text, as it will be searched", min=1)
    ] = 128,
    no_rerank: Annotated[bool, Option(help="for searches by the embeddings alone")] = False,
    presence: Annotated[
        float,
        Option(help="in what share of your searches the one asked for is there (tpas search takes it too)"),
    ] = 0.5,
    seed: Annotated[int, Option(help="of the persons that are learnt from", min=0)] = 0,
    output: Annotated[
        Path | None, Option(help="the file to write (default: calibration.json in the model's folder)")
    ] = None,
) -> CommandResult:
    if split != "validation":
        raise WrongUsage(
            f"--split {split}: a calibration must not see the test set, which could no longer measure it and "
            "whose use the challenge forbids: --split validation"
        )
    from ..search.calibration import CALIBRATION, Calibration, check_persons, check_presence

    check_presence(presence)

    if output is None:
        if not (folder := Path(choice.source().name)).is_dir():
            raise WrongUsage(f"--output names the file to write: {folder} is no folder on this machine")
        output = folder / CALIBRATION
    check_place(output)
    cut = {"validation_fraction": validation_fraction, "max_validation_pairs": max_validation_pairs}

    with quick_imports():
        from ..data.distractors import find_distractors
        from ..data.pab import source_videos
        from ..data.retrieval_data import RetrievalData
        from ..evaluation.labelled_answers import gallery_of_pairs, labelled_answers
        from ..models.fingerprints import image_fingerprint, model_fingerprint, text_fingerprint

    data = RetrievalData.open(data_root, image_root)
    cut = as_trained(Path(choice.source().name), cut)
    dataset = data.pairs(split, **{name: value for name, value in cut.items() if value is not None})
    data.check_images(dataset)
    check_persons(source_videos(dataset))
    own = list(dict.fromkeys(dataset["image"]))
    distractors = find_distractors(gallery, data.image_root, own, rules) if gallery else {}
    model, processor = choice.load()
    with tempfile.TemporaryDirectory(prefix="tpas-calibrate-") as folder:
        made = gallery_of_pairs(model, processor, dataset, data.image_root, Path(folder), distractors)
        answers = labelled_answers(made, dataset, shortlist=shortlist, rerank=False if no_rerank else None)
    fingerprints = model_fingerprint(model), image_fingerprint(model, processor), text_fingerprint(processor)
    learnt = Calibration.learn(answers, fingerprints=fingerprints, shortlist=shortlist, seed=seed)
    calibration = replace(learnt, presence=presence)
    calibration.save(output)
    content = {"output": str(output), "persons": calibration.persons, "images": calibration.images}
    content |= {"presence": presence, "highest_coverage": calibration.highest_coverage()}
    return CommandResult(content | calibration.measured, f"{summary(calibration)}\n\nwritten: {output}")


def as_trained(model: Path, cut: dict[str, Any]) -> dict[str, Any]:
    """The cut of train that the run which left this model made, where no flag says another.

    Of a larger one the model has seen a part, so that its calibration promises too much: a warning says it.
    """
    from ..training.run_folder import arguments_of_run

    training = arguments_of_run(model) or {}
    for name, own in cut.items():
        trained = training.get(name)
        if own is not None and trained is not None and own > trained:
            logger.warning(
                "the model was trained with --%s %s: with %s it may have seen pairs that it is calibrated "
                "on, and the chances come out too high",
                *(name, trained, own),
            )
    return {name: training.get(name) if own is None else own for name, own in cut.items()}


def summary(calibration: "Calibration") -> str:
    """What it is worth, for people."""
    from ..search.calibration import ASSUMPTION

    found = calibration.measured
    coverages = calibration.highest_coverage(), calibration.highest_coverage(each_behaviour=True)
    persons = "1 person" if calibration.persons == 1 else f"{calibration.persons} persons"
    return "\n".join(
        [
            f"Learnt from {persons}, {calibration.images} images; on the half held out:",
            f"  who is there has the higher chance than who is not in {found['auroc']:.0%} of pairs "
            f"(best score alone: {found['auroc_of_best_score']:.0%})",
            f"  to keep 95 % of those who are there, {found['fpr95']:.0%} of the others are kept too "
            f"(best score alone: {found['fpr95_of_best_score']:.0%})",
            f"  a chance differs from what happens by {100 * found['ece']:.1f} points "
            f"(a perfect one, of so few texts: {100 * found['ece_of_a_perfect_one']:.1f})",
            f"  it can promise a --coverage of up to {coverages[0]:.3f}, and with --each_behaviour of "
            f"{coverages[1]:.3f}",
            ASSUMPTION,
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
