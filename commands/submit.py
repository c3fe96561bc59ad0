"""Writes or checks the answer file of a text-based person anomaly search challenge.

    tpas submit name-masked_test-set --model MODEL --output answer.zip
    tpas submit name-masked_test-set --scores reranked.npz --output answer.txt
    tpas submit name-masked_test-set --validate answer.zip

For the WWW 2025 workshop and AI City Challenge 2026, Track 4; `challenge.py` says what is known of their
files. A file named .zip is the archive that their servers take, with answer.txt in it. The flags are those of
`tpas evaluate`; SCA uses all queries together, as it does there. The challenge forbids any use of the test
set's outputs to choose a model, a threshold, a weight or a post-processing: choose them on held-out data.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ..data.image_folders import FolderRules
from ..data.whole_files import check_place
from ..evaluation.arguments import RankingArguments
from ..evaluation.stages import Stage
from .command_line import CHECK_FAILED, DONE, CommandLine, CommandResult, WrongUsage, shown_warnings

if TYPE_CHECKING:
    from ..data.challenge import Challenge

SHOWN_MISTAKES = 20

app = CommandLine("tpas submit", __doc__)


@app.command()
def submit(
    test_set: Annotated[
        Path, Argument(metavar="TEST_SET", help="the folder with the query file and gallery/")
    ],
    ranking: RankingArguments,
    rules: FolderRules,
    model: Annotated[
        str | None, Option(help="folder or Hub name of a model with its processor, or KIND:NAME of another's")
    ] = None,
    output: Annotated[Path | None, Option(help="the answer file to write, .txt or .zip")] = None,
    validate: Annotated[
        Path | None, Option(help="check this answer file, and write none; exit code 3 if it has mistakes")
    ] = None,
    scores: Annotated[
        Path | None,
        Option(help="in place of --model: a score file, such as `tpas rerank` and `tpas fuse` write"),
    ] = None,
    stage: Annotated[Stage, Option(help="whose ranking is written")] = Stage.SCA,
    write_scores: Annotated[
        Path | None, Option(help="write the shortlists' scores, as `tpas evaluate` does")
    ] = None,
) -> CommandResult:
    if validate is None and not (output and (model or scores)):
        raise WrongUsage(
            "give --output and --model or --scores to write answers, or --validate to check some"
        )
    if validate is not None and (model or output or scores):
        raise WrongUsage("--validate checks a file made elsewhere: leave out --model, --scores and --output")
    if scores and (model or write_scores):
        raise WrongUsage("--scores ranks as the file says: leave out --model and --write_scores")
    if stage == Stage.FUSED and not ranking.fusion_weight:
        raise WrongUsage("--stage fused needs a --fusion_weight above 0")
    from ..data.challenge import read_challenge

    challenge = read_challenge(test_set, rules)
    if validate is not None:
        return check(validate, challenge)
    assert output is not None  # as checked above, and one of the two below
    if scores:
        return write_from_scores(scores, challenge, output)
    assert model is not None
    return write(test_set, challenge, ranking, model, output, stage, write_scores)


def check(path: Path, challenge: "Challenge") -> CommandResult:
    """What is wrong with an answer file, line by line."""
    from ..data.challenge import find_mistakes, read_answers

    mistakes = find_mistakes(read_answers(path), challenge)
    content = {"path": str(path), "answers": len(challenge.query_ids), "mistakes": mistakes}
    if not mistakes:
        return CommandResult(content, f"{path}: {len(challenge.query_ids)} lines as they should be", DONE)
    more = len(mistakes) - SHOWN_MISTAKES
    shown = [f"{path}: {mistake}" for mistake in mistakes[:SHOWN_MISTAKES]]
    lines = shown + ([f"... and {more} more mistakes"] if more > 0 else [])
    return CommandResult(content, "\n".join(lines), CHECK_FAILED)


def write(
    test_set: Path,
    challenge: "Challenge",
    ranking: RankingArguments,
    model: str,
    output: Path,
    stage: Stage,
    scores_path: Path | None,
) -> CommandResult:
    """Ranks the gallery and writes the answers. Every process must call it; the main one writes."""
    from accelerate import Accelerator

    from ..data.challenge import ANSWERS, write_answers
    from ..data.pab_images import ImageFiles
    from ..evaluation.ranking import rank_gallery
    from ..evaluation.result_files import write_scores
    from ..models.interface import can_match
    from ..models.unread_texts import warn_of_unread
    from ..reranking.fusion import check_fusion_weight
    from ..reranking.score_files import check_suffix
    from ..search.ranking import resolve_shortlist

    accelerator = Accelerator()
    names = sorted(challenge.images)
    shortlist = resolve_shortlist(ranking.shortlist, len(names))
    if shortlist < ANSWERS:
        raise ValueError(f"an answer names {ANSWERS} images, but --shortlist is {shortlist}")
    if ranking.matcher and ranking.matcher_shortlist < ANSWERS:
        raise ValueError(
            f"an answer names {ANSWERS} images, but --matcher_shortlist is {ranking.matcher_shortlist}"
        )
    check_fusion_weight(ranking.fusion_weight)
    if scores_path:
        check_suffix(scores_path)
        check_place(scores_path)
    check_place(output)
    network, processor = ranking.load(model, accelerator.device)
    if accelerator.is_main_process:
        places = [f"query {query_id}" for query_id in challenge.query_ids]
        warn_of_unread(processor, challenge.captions, places)
    if stage in (Stage.MATCHING, Stage.FUSED) and not (ranking.matcher or can_match(network)):
        raise ValueError(
            f"--stage {stage}: {model} has embeddings alone, whose stages are embeddings and sca"
        )
    ranked = rank_gallery(
        network,
        processor,
        challenge.captions,
        challenge.query_ids,
        ImageFiles(test_set, names, elsewhere=challenge.images),
        names,
        shortlist=shortlist,
        matcher=ranking.load_matcher(accelerator.device),
        **ranking.settings(),
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        best = ranked.indices[stage][:, :ANSWERS].tolist()
        write_answers(output, [[names[column] for column in row] for row in best], challenge)
        if scores_path:
            write_scores(scores_path, challenge.query_ids, names, ranked.indices, ranked.scores)
    accelerator.end_training()
    answers = len(challenge.query_ids)
    return CommandResult(
        {"output": str(output), "answers": answers, "images": len(names), "stage": stage},
        f"{answers} answers of {ANSWERS} names among {len(names):,}: {output}",
    )


def write_from_scores(path: Path, challenge: "Challenge", output: Path) -> CommandResult:
    """Writes the best images of a score file, whose ids are the challenge's."""
    from ..data.challenge import ANSWERS, write_answers
    from ..reranking.ranked_lists import in_tie_order
    from ..reranking.score_files import align_gallery, align_queries, read_score_file
    from ..sca import best_columns, scored_candidates

    names = in_tie_order(list(challenge.images))
    file = align_queries(read_score_file(path), str(path), tuple(challenge.query_ids), "the challenge")
    file = align_gallery(file, str(path), names, "the challenge")
    with shown_warnings("tpas submit"):
        images, values, scored = scored_candidates(file.indices, file.scores)
    if scored.min() < ANSWERS:
        query = challenge.query_ids[int(scored.argmin())]
        raise ValueError(
            f"an answer names {ANSWERS} images, but {path} has {scored.min()} scored for query {query!r}"
        )
    best = best_columns(values, ANSWERS) if images is None else images[:, :ANSWERS]
    write_answers(output, [[names[column] for column in row] for row in best.tolist()], challenge)
    answers = len(challenge.query_ids)
    return CommandResult(
        {"output": str(output), "answers": answers, "images": len(names), "scores": str(path)},
        f"{answers} answers of {ANSWERS} names among {len(names):,}: {output}",
    )


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
