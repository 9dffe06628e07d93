#!/bin/sh
# Measures the committed reference results anew, in about fifty minutes, as root on a quiet machine,
# after `make setup setup-keras3`:
#
#     sh benchmarks/reference/measure.sh OUT [IMAGES [TEXT]]
#
# OUT is made. IMAGES is a folder of images in folders of classes, TEXT a text file; without them
# ResNet-18 and the LSTM train on synthetic data.
set -eu

out=$1
images=${2:-synthetic}
text=${3:-synthetic}
cd "$(dirname "$0")/../.."
PATH="$PWD/.venv/bin:$PATH"
export PATH

others=fp32,fp16,gloo,powersgd-2,topk
for rate in 100mbit 1gbit none; do
    case $rate in 100mbit) calls=3 ;; *) calls=7 ;; esac
    for workers in 2 4 8; do
        # 3.2 kB, 102 kB, 3.3 MB and 100 MiB.
        python -m benchmarks.allreduce --network cluster --rate "$rate" --workers "$workers" \
            --methods "$others,vote,signum,lion,ef_sign,vote-allgather" -b 3200 -e 100M -f 32 \
            -n "$calls" -w 1 --out "$out"
    done
done
for rate in 1gbit none; do
    python -m benchmarks.allreduce --network cluster --rate "$rate" \
        --methods fp32,vote,vote-tensorflow -n 20 --out "$out"
done

python=python
train() {
    "$python" -m benchmarks.train --network cluster --rate 1gbit --out "$out" "$@"
}
train --methods fp32,fp16,powersgd-2,vote,signum,lion,ef_sign,local
train --framework tensorflow --methods fp32,vote,signum,local
python=.venv-keras3/bin/python
train --framework tensorflow --methods fp32,vote,signum,local
python=python
train --model resnet18 --data "$images" --methods fp32,fp16,powersgd-2,vote,signum,local \
    --batch 8 --num-iters 3 --epochs 3 --test-limit 1000
train --model lstm --data "$text" --methods fp32,fp16,powersgd-2,vote,signum,local --num-iters 4 \
    --epochs 3
train --model gpt2 --data synthetic --methods fp32,fp16,powersgd-2,vote,signum,local \
    --num-iters 2 --num-batches-per-iter 3 --num-warmup-batches 2 --batch 1
python -m benchmarks.report "$out"/* --out "$out/report"
