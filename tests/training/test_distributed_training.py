"""Training through `accelerate launch` with the shipped configurations, as far as it goes without GPUs."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from training_runs import flags, losses_of, train, weights

from tpas.data.whole_files import held_alone
from tpas.modeling_tpas import TPASModel
from tpas.training.checkpointing import check_whole, find_checkpoints

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes" / "accelerate"

# accelerate gives FSDP to GPUs alone. torch's own works over gloo, so the run must believe that it has some.
# The same processes go on from a checkpoint, as if they had been killed in the last step: imports take long.
FSDP_WITHOUT_GPU = """
import shutil, sys
from pathlib import Path
from accelerate import PartialState
from accelerate.utils import DistributedType
from training_runs import parsed
from tpas.train_accelerate import main
from tpas.training.fine_tuning import Run

output, *words = sys.argv[1:]
output = Path(output)
state = PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
Run(parsed(words)).train()
state.wait_for_everyone()
if state.is_main_process:
    shutil.copytree(output / "last", output / "ended")
    shutil.rmtree(output / "checkpoints" / "step_00000004")
    assert (output / "checkpoints" / "step_00000003" / "pytorch_model_fsdp_0").is_dir()
state.wait_for_everyone()
main([*words, "--resume_from_checkpoint", "last"])
"""


def launch(config: str, program: Path, *words: object) -> None:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / config]
    command += ["--mixed_precision", "no", "--main_process_port", 0, program, *words]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.usefixtures("fresh_accelerator")
def test_a_signal_to_the_launcher_alone_ends_in_a_checkpoint(small_pab, start, tmp_path):
    """The launcher passes none on; the run ends after its step, and goes on from there to the bit."""
    settings = {"num_train_epochs": 40, "batch_size": 2, "evaluate_every": 0, "lr_scheduler_type": "constant"}
    run, whole = tmp_path / "run", tmp_path / "whole"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [str(ROOT / "train_accelerate.py"), *flags(small_pab, start, run, **settings)]
    errors = tmp_path / "errors"
    with errors.open("w") as stream:
        launcher = subprocess.Popen(command, stderr=stream, stdout=stream)
    log = run / "training_log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert launcher.poll() is None, errors.read_text()
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait() == -signal.SIGTERM  # which a shell calls 143
    with held_alone(run / "run.lock", wait=60):  # until the run has ended
        checkpoint = find_checkpoints(run / "checkpoints")[-1]
        check_whole(checkpoint)
        assert int(checkpoint.name[5:]) == len(losses_of(run)) < 320
    steps = len(losses_of(run)) + 2
    for folder, more in ((whole, {}), (run, {"resume_from_checkpoint": "last"})):
        train(flags(small_pab, start, folder, **settings, **more, max_train_steps=steps))
    assert losses_of(run) == losses_of(whole)
    expected = weights(whole / "last")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(run / "last").items())


@pytest.mark.usefixtures("without_dropout")
def test_seeds_follow_each_other_on_two_processes_and_fsdp_trains_and_goes_on_as_ddp_does(
    small_pab, start, tmp_path
):
    seeds, cut = tmp_path / "seeds", tmp_path / "cut"
    words = partial(flags, small_pab, start, num_train_epochs=2, batch_size=4, checkpoint_every=1)
    launch("cpu_two_processes.yaml", ROOT / "train_accelerate.py", *words(seeds, seeds=2, seed=7))
    assert json.loads((seeds / "seeds.json").read_text())["seeds"] == [7, 8]
    for seed in (7, 8):
        settings = json.loads((seeds / f"seed_{seed}" / "training_arguments.json").read_text())
        assert (settings["num_processes"], settings["effective_batch"], settings["total_steps"]) == (2, 8, 4)

    program, whole = tmp_path / "fsdp.py", seeds / "seed_7"
    program.write_text(FSDP_WITHOUT_GPU)
    launch("fsdp.yaml", program, cut, *words(cut, seed=7))
    assert losses_of(cut) == pytest.approx(losses_of(whole), abs=1e-5)
    ended, resumed = weights(cut / "ended"), weights(cut / "last")
    for name, tensor in weights(whole / "last").items():
        torch.testing.assert_close(ended[name], tensor, atol=1e-5, rtol=0)
        assert torch.equal(resumed[name], ended[name]), name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_accelerate_reads_every_configuration(path):
    config = load_config_from_file(str(path))
    assert config.num_processes >= 1
    assert config.compute_environment == "LOCAL_MACHINE"
    written = yaml.safe_load(path.read_text())
    if written["distributed_type"] == "FSDP":
        wrapped = set(written["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(","))
        assert wrapped == set(TPASModel._no_split_modules)
