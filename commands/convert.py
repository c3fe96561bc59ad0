"""Turns an X-VLM checkpoint into a directory for `TPASModel.from_pretrained`, with its processor.

    tpas convert checkpoint_9.pth xvlm-coco --vision_config config_swinB_384.json
    tpas convert --swin swin_base_patch4_window7_224_22k.pth --bert bert-base-uncased start

Read are X-VLM's fine-tuned retrieval checkpoints, its pre-training checkpoints, and those of CMP, PAB's own
baseline; which of them a file is shows in its keys. Without configurations X-VLM base at 384 pixels is
assumed. Conversion is total or refused: a missing, unexpected or mis-shaped key is an error, and what is left
out on purpose is reported. With --swin and --bert it makes the start that X-VLM's pre-training itself had.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from .command_line import CommandLine, CommandResult, WrongUsage

app = CommandLine("tpas convert", __doc__)


@app.command()
def convert(
    paths: Annotated[
        list[Path],
        Argument(
            metavar="[CHECKPOINT] OUTPUT_DIR",
            help="upstream's .th, .pth or .safetensors, and a directory to write, not there yet or empty",
        ),
    ],
    swin: Annotated[Path | None, Option(help="in place of CHECKPOINT: Swin trained on ImageNet, and")] = None,
    bert: Annotated[
        str | None, Option(help="a BERT, its folder or Hub id: the untrained start of an X-VLM")
    ] = None,
    vision_config: Annotated[Path | None, Option(help="upstream's configuration of Swin, JSON")] = None,
    text_config: Annotated[Path | None, Option(help="upstream's configuration of BERT, JSON")] = None,
    image_size: Annotated[int | None, Option(help="pixels a side, if not as configured")] = None,
    tokenizer: Annotated[
        str, Option(help="folder or Hub id of the tokenizer, or 'none' to write no processor")
    ] = "bert-base-uncased",
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"], Option(help="of the weights written")
    ] = "float32",
    drop_cmp_parts: Annotated[
        bool, Option(help="convert a CMP checkpoint without what only CMP has")
    ] = False,
) -> CommandResult:
    import torch

    from ..models.checkpoint_conversion import convert_checkpoint

    if len(paths) > 2:
        raise WrongUsage(f"give a checkpoint and a directory to write, got {len(paths)} paths")
    *checkpoint, output_dir = paths
    conversion = convert_checkpoint(
        checkpoint[0] if checkpoint else None,
        output_dir,
        swin=swin,
        bert=bert,
        vision_config=vision_config,
        text_config=text_config,
        image_size=image_size,
        tokenizer=None if tokenizer == "none" else tokenizer,
        dtype=getattr(torch, dtype),
        drop_cmp_parts=drop_cmp_parts,
    )
    parameters = sum(tensor.numel() for tensor in conversion.state_dict.values())
    lines = [f"{output_dir}: {conversion.kind} checkpoint, {parameters:,} parameters", *conversion.notes]
    if conversion.interpolated:
        count = len(conversion.interpolated)
        lines.append(f"interpolated to another window: {count} relative position tables")
    for reason, names in conversion.left_out.items():
        few = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        lines.append(f"left out, {reason}: {len(names)} ({few})")
    if conversion.new:
        lines.append(f"not in the checkpoint, drawn at random: {len(conversion.new)}")
        lines += [f"  {name}" for name in conversion.new]
    content = {"output_dir": str(output_dir), "kind": conversion.kind, "parameters": parameters}
    content |= {name: getattr(conversion, name) for name in ("interpolated", "left_out", "new", "notes")}
    return CommandResult(content, "\n".join(lines))


def main(argv: Sequence[str] | None = None) -> None:
    app.run(argv)


if __name__ == "__main__":
    main()
