"""`tpas <command>`: every command of the repository under one name."""

import sys
from importlib import import_module

COMMANDS = {
    "demo": ("demo", "draw a small PAB, fine-tune on it, evaluate, and write a page"),
    "convert": ("convert_checkpoint", "turn an X-VLM checkpoint into a model directory"),
    "train": ("train_accelerate", "fine-tune on PAB, in one process; `accelerate launch` takes several"),
    "evaluate": ("evaluate_retrieval", "measure retrieval on PAB, stage by stage"),
    "gallery": ("manage_gallery", "encode pictures into a gallery; append to it, delete from it"),
    "search": ("search_gallery", "find the pictures of a gallery that answer a text"),
    "app": ("app", "open a web page to search a gallery, and to see why a picture was found"),
    "compare": ("compare_evaluations", "test one evaluation against another, query by query"),
    "submit": ("submit_answers", "write or check a challenge's answer file"),
    "rerank": ("rerank_scores", "settle collisions or hubs in a score file of any system"),
    "fuse": ("fuse_scores", "fuse score files of several systems"),
    "draw": ("synthetic_pab", "draw a small PAB"),
    "push": ("push_to_hub", "upload a model with its card to the Hugging Face Hub"),
}
USAGE = "usage: tpas COMMAND ...\n\ncommands (tpas COMMAND --help tells more):\n" + "\n".join(
    f"  {name:<10}{about}" for name, (_, about) in COMMANDS.items()
)


def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise SystemExit(f"tpas: no command {name!r}\n\n{USAGE}")
    module = import_module(f"tpas.{COMMANDS[name][0]}")
    sys.argv[0] = f"tpas {name}"  # what the command's own help calls it
    sys.exit(module.main(rest))


if __name__ == "__main__":
    main()
