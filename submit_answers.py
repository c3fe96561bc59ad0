"""Writes or checks the answer file of a text-based person anomaly search challenge.

    tpas submit name-masked_test-set --model MODEL --output answer.txt
    tpas submit name-masked_test-set --validate answer.txt

For the WWW 2025 workshop and AI City Challenge 2026, Track 4; `challenge.py` says what is known of their
files. The flags are those of `tpas evaluate`; SCA uses all queries together, as it does there.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator

from tpas.challenge import ANSWERS, Challenge, find_mistakes, read_challenge, read_text, write_answers
from tpas.evaluation.arguments import (
    add_ranking_arguments,
    load_for_ranking,
    load_matcher_for_ranking,
    ranking_settings,
)
from tpas.evaluation.pictures import PictureFiles
from tpas.evaluation.ranking import rank_gallery
from tpas.evaluation.result_files import write_scores
from tpas.evaluation.tables import STAGE_NAMES
from tpas.retrieval_stages import check_fusion_weight, resolve_shortlist
from tpas.score_files import check_suffix

SHOWN_MISTAKES = 20


def validate(path: Path, challenge: Challenge) -> None:
    """Raises ValueError with what is wrong, line by line, or FileNotFoundError."""
    if mistakes := find_mistakes(read_text(path), challenge):
        more = len(mistakes) - SHOWN_MISTAKES
        shown = [f"{path}: {mistake}" for mistake in mistakes[:SHOWN_MISTAKES]]
        raise ValueError("\n".join(shown + ([f"... and {more} more mistakes"] if more > 0 else [])))


def submit(arguments: argparse.Namespace, challenge: Challenge) -> None:
    """Ranks the gallery and writes the answers. Every process must call it; the main one writes."""
    accelerator = Accelerator()
    level = logging.INFO if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(message)s")
    names = sorted(challenge.pictures)
    shortlist = resolve_shortlist(arguments.shortlist, len(names))
    if shortlist < ANSWERS:
        raise ValueError(f"an answer names {ANSWERS} pictures, but --shortlist is {shortlist}")
    if arguments.matcher and arguments.matcher_shortlist < ANSWERS:
        raise ValueError(
            f"an answer names {ANSWERS}, but --matcher_shortlist is {arguments.matcher_shortlist}"
        )
    check_fusion_weight(arguments.fusion_weight)
    if arguments.scores:
        check_suffix(arguments.scores)
    if arguments.stage == "fused" and not arguments.fusion_weight:
        raise ValueError("--stage fused needs a --fusion_weight above 0")
    model, processor = load_for_ranking(arguments, accelerator.device)
    ranked = rank_gallery(
        model,
        processor,
        challenge.captions,
        challenge.query_ids,
        PictureFiles(arguments.test_set, names, elsewhere=challenge.pictures),
        names,
        shortlist=shortlist,
        matcher=load_matcher_for_ranking(arguments, accelerator.device),
        **ranking_settings(arguments),
        accelerator=accelerator,
    )
    if arguments.stage not in ranked.indices:
        raise ValueError(
            f"--stage {arguments.stage}: {arguments.model} has {', '.join(ranked.indices)} alone"
        )
    if accelerator.is_main_process:
        best = ranked.indices[arguments.stage][:, :ANSWERS].tolist()
        answers = [[names[column] for column in row] for row in best]
        write_answers(arguments.output, answers, challenge)
        print(f"{len(answers)} answers of {ANSWERS} names among {len(names):,}: {arguments.output}")
        if arguments.scores:
            write_scores(arguments.scores, challenge.query_ids, names, ranked.indices, ranked.scores)
    accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="tpas submit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("test_set", type=Path, metavar="TEST_SET", help="the folder with the query file and gallery/")
    add("--model", help="folder or Hub name of a model with its processor")
    add("--output", type=Path, metavar="TXT", help="the answer file to write")
    add("--validate", type=Path, metavar="TXT", help="check this answer file, and write none")
    add("--stage", choices=list(STAGE_NAMES), default="sca", help="whose ranking is written (default: sca)")
    add("--scores", type=Path, metavar="FILE", help="write the shortlists' scores, as `tpas evaluate` does")
    add_ranking_arguments(parser)
    arguments = parser.parse_args(argv)
    if arguments.validate is None and not (arguments.model and arguments.output):
        parser.error("give --model and --output to write answers, or --validate to check some")
    if arguments.validate is not None and (arguments.model or arguments.output):
        parser.error("--validate checks a file made elsewhere: leave out --model and --output")
    try:
        challenge = read_challenge(arguments.test_set)
        if arguments.validate is None:
            submit(arguments, challenge)
        else:
            validate(arguments.validate, challenge)
            print(f"{arguments.validate}: {len(challenge.query_ids)} lines as they should be")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


if __name__ == "__main__":
    main()
