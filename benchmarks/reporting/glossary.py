"""What the columns of tables mean, for a reader of the page; M is the number of workers."""

from __future__ import annotations

ALLREDUCE = {
    "size": "bytes of fp32 that a call reduces",
    "method": "how; every method gets the same tensors, and they take turns call by call",
    "median ms": "median over the calls of the slowest rank's time, from a barrier on",
    "min": "the same of the fastest call",
    "max": "the same of the slowest call",
    "algbw": "size / median time",
    "busbw": "algbw x 2 (M-1)/M: what each link of a ring would carry, were it fp32",
    "payload": "bytes that a worker sends in a call, counted or by formula",
    "wire": "bytes that left a worker's interface, by its counter: payload, frames and controls",
    "wire limit ms": "payload / rate: no faster on this network, whatever the program",
    "memory limit ms": "2 (size + payload) / what a rank can copy while all ranks do; none for "
    "sizes that caches hold",
    "wrong": "coordinates of a sample that are not what the method promises",
    "speed-up": "how many times as fast as Horovod's fp32 (without Horovod, MPI's) in the same run",
    "over best": "how many times as fast as the fastest method that is not hvd_sign's",
}
OVERLAP = {
    "method": "how",
    "alone ms": "median time of the exchange of all gradients at once, with nothing beside it",
    "backward ms": "median time of a backward that sleeps instead of computing, as long as that",
    "exposed ms": "how much later than the slowest rank's backward the slowest rank may step, "
    "median; min and max are of the same",
    "min": "the least of it",
    "max": "the most of it",
    "exposed / alone": "the part that did not hide behind backward",
}
COLUMNS = {"allreduce": ALLREDUCE, "overlap": OVERLAP, "training": {}}
