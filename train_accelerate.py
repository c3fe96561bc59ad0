"""Fine-tunes a TPAS model, or another retrieval model, on PAB. The defaults are the paper's recipe.

    tpas train --data_root PAB --model_name_or_path xvlm --output_dir outputs/run
    accelerate launch train_accelerate.py --data_root PAB --model_name_or_path xvlm --output_dir outputs/run

The output directory receives `best/` (highest Recall@1 on the validation split, before SCA) and `last/`, each
a model with its processor (with `--lora_rank` the adapter alone); `training_log.jsonl`, an object for each
logged step and evaluation; `training_arguments.json`; the tracker's files; and `checkpoints/`, from which
a run that was stopped goes on with `--resume_from_checkpoint last` as if it had not been. SIGTERM, Ctrl-C, a
closed terminal and the end of its launcher end a run after the step it is in, with a checkpoint. With
`--seeds` there is such a folder for each seed, and `seeds.json` over all.
"""

# pyright: reportMissingImports=false
# A script imports the installed package, which type checkers do not find: it has no folder of its name.
import json
from collections.abc import Sequence
from pathlib import Path

from tpas.commands.command_line import CommandLine, CommandResult, is_main_process
from tpas.training.arguments import FineTuningArguments

app = CommandLine("tpas train", __doc__, log_format="%(asctime)s %(levelname)s %(message)s")


@app.command()
def train(arguments: FineTuningArguments) -> CommandResult | None:
    from accelerate import PartialState

    from tpas.training.fine_tuning import Run
    from tpas.training.seeds import best_evaluation, train_on_seeds

    train_on_seeds(arguments) if arguments.seeds > 1 else Run(arguments).train()
    PartialState().destroy_process_group()
    if not is_main_process():
        return None
    output_dir = Path(arguments.output_dir)
    content = {"output_dir": str(output_dir), "best": None}
    if arguments.seeds > 1:
        content |= json.loads((output_dir / "seeds.json").read_text(encoding="utf-8"))
        return CommandResult(content, f"{output_dir}: {arguments.seeds} runs, and seeds.json over all")
    if not arguments.evaluate_every:
        return CommandResult(content, f"{output_dir}: last/, not evaluated")
    content["best"] = best_evaluation(output_dir / "training_log.jsonl")
    figures = {stage: groups["all"]["recall@1"] for stage, groups in content["best"].items()}
    shown = ", ".join(f"{stage} {100 * recall:.2f}" for stage, recall in figures.items())
    written = "last/, best/ and merged/" if arguments.merge else "last/ and best/"
    return CommandResult(content, f"{output_dir}: {written}, validation Recall@1 of the best {shown}")


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
