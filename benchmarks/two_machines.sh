#!/usr/bin/env bash
# Builds a gallery by two machines, loses one of them in the middle, and builds on: for root on Linux.
#
#     sudo env "PATH=$PATH" bash benchmarks/two_machines.sh [PYTHON]
#
# First the second is killed, then the first, then the cable between them is cut without a word; LOST="cable" is the
# last alone. A silence is given up after two hours, here after half a minute.
#
# The machines are two network namespaces of this one, joined by a cable of their own (192.0.2.1 and 192.0.2.2, which
# no network uses); the folder that they share is a temporary one, which goes at the end. docs/scale.md has the
# commands for real machines. Ends with 0 if all galleries have the bytes of the one that one process builds.
set -euo pipefail

python=$(realpath -s "${1:-.venv/bin/python}")
root=$(dirname "$(dirname "$(realpath "$0")")")
work=$(mktemp -d)
images=${IMAGES:-1500}
export PYTHONPATH=${PYTHONPATH:-} OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true TRANSFORMERS_VERBOSITY=error

kill_machine() { { ip netns pids "tpas-$1" | xargs --no-run-if-empty kill -9; } 2> /dev/null || true; }
clean() {
    for machine in a b; do
        kill_machine $machine
        ip netns delete tpas-$machine 2> /dev/null || true
    done
    rm -rf "$work"
}
trap clean EXIT

ip netns add tpas-a
ip netns add tpas-b
ip link add tpas-a netns tpas-a type veth peer name tpas-b netns tpas-b
for machine in a b; do
    ip -n tpas-$machine link set lo up
    ip -n tpas-$machine link set tpas-$machine up
done
ip -n tpas-a address add 192.0.2.1/24 dev tpas-a
ip -n tpas-b address add 192.0.2.2/24 dev tpas-b

"$python" - "$work/images" "$images" << 'END'
import sys
from pathlib import Path

import numpy as np
from PIL import Image

folder, count = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
for number in range(count):
    pixels = np.random.default_rng(number).integers(0, 256, (160, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{number:06d}.jpg")
END

# As `python -m tpas`, with less patience.
cat > "$work/patient.py" << 'END'
import os
from datetime import timedelta

from tpas.search import building

if "SILENCE" in os.environ:
    building.SILENCE = timedelta(seconds=float(os.environ["SILENCE"]))
from tpas.__main__ import main

main()
END

build() {  # GALLERY
    echo gallery build "$work/images" --model "$root/demo_start" --path "$work/$1" --shard_size 32 --batch_size 4
}
on_both() {  # GALLERY: starts it on both machines, in the background
    local rank=0
    for machine in a b; do
        # gloo and NCCL talk over the cable by name: the host's own name leads to another address.
        GLOO_SOCKET_IFNAME=tpas-$machine NCCL_SOCKET_IFNAME=tpas-$machine \
            ip netns exec tpas-$machine "$python" -m accelerate.commands.launch --multi_gpu --num_machines 2 \
            --num_processes 2 --machine_rank $rank --main_process_ip 192.0.2.1 --main_process_port 29500 \
            --rdzv_backend static --mixed_precision no --dynamo_backend no "$work/patient.py" $(build "$1") \
            > "$work/$1-$machine.log" 2>&1 &
        rank=1
    done
}
shards() { find "$work/$1/shards" -mindepth 1 -maxdepth 1 -name '??????-????????????????' 2> /dev/null | wc -l; }

echo "$(getconf _NPROCESSORS_ONLN) processors, load $(cut -d' ' -f1 /proc/loadavg); $images images"
start=$SECONDS
"$python" -m tpas $(build one) > "$work/one.log" 2>&1
whole=$(shards one)
echo "one process: $((SECONDS - start)) s, $whole shards"

for lost in ${LOST:-b a cable}; do
    kept=$([ $lost = a ] && echo b || echo a)
    [ $lost = cable ] && export SILENCE=30
    gallery=without_$lost
    on_both "$gallery"
    pids=$(jobs -p)
    until [ "$(shards "$gallery")" -ge $((whole / 3)) ]; do
        kill -0 $pids || { cat "$work/$gallery"-*.log; exit 1; }
        sleep 0.1
    done
    there=$(shards "$gallery")
    start=$SECONDS
    if [ $lost = cable ]; then
        ip -n tpas-a link set tpas-a down
    else
        kill_machine $lost
    fi
    { wait -n $pids || true; } 2> /dev/null  # one that was killed ends first
    { wait $pids || true; } 2> /dev/null
    how=$([ $lost = cable ] && echo "the cable was cut" || echo "machine $lost was killed")
    echo "$how at $there of $whole shards; machine $kept ended after $((SECONDS - start)) s, said:"
    grep -h "tpas gallery build:" "$work/$gallery-$kept.log" || tail -n 5 "$work/$gallery-$kept.log"
    echo "left: $(shards "$gallery") shards"
    if [ $lost = cable ]; then
        ip -n tpas-a link set tpas-a up
        sleep 3  # until the machines find each other
        unset SILENCE
    fi
    start=$SECONDS
    on_both "$gallery"
    wait
    echo "both again: $((SECONDS - start)) s; $(tail -n 4 "$work/$gallery-a.log" | head -n 1)"
    diff -r "$work/one/shards" "$work/$gallery/shards"
    # The manifest has a name of its own, which tells galleries apart.
    diff <(sed '/"name": "[0-9a-f]\{32\}"/d' "$work/one/gallery.json") \
        <(sed '/"name": "[0-9a-f]\{32\}"/d' "$work/$gallery/gallery.json")
    echo "the bytes of $gallery are those of one process's gallery"
done
