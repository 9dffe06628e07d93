"""Damaged small messages: who sent them and what is wrong, in words; nothing of them is used."""

from __future__ import annotations

import pickle
import time
from zlib import crc32

import numpy as np
import pytest
from mpi4py import MPI

from hvd_sign.algorithms import Sign
from hvd_sign.core.buckets import Bucket, TensorSpec
from hvd_sign.core.options import VoteOptions
from hvd_sign.devices import HOST, Operand
from hvd_sign.errors import VoteError
from hvd_sign.rounds.base import Subject
from hvd_sign.rounds.inline import InlineRound, inline_options
from hvd_sign.rounds.reference import ReferenceRound
from hvd_sign.transports import LocalTransport
from hvd_sign.transports.mpi import MpiMailbox
from hvd_sign.transports.nodes import Nodes
from hvd_sign.votes import MajorityVote


@pytest.fixture
def comm():
    duplicate = MPI.COMM_SELF.Dup()
    yield duplicate
    duplicate.Free()


def received(mailbox: MpiMailbox) -> list:
    """What comes within a while."""
    messages: list = []
    end = time.monotonic() + 10
    while not messages and time.monotonic() < end:
        messages = mailbox.receive()
    return messages


def test_a_message_is_a_checksum_and_a_pickle(comm):
    """Both ways: what the mailbox sends, and what it takes."""
    mailbox = MpiMailbox(comm, 7)
    mailbox.send(("gradient", 3), 0)
    status = MPI.Status()
    comm.Probe(tag=7, status=status)
    raw = bytearray(status.Get_count(MPI.BYTE))
    comm.Recv(raw, tag=7)
    assert int.from_bytes(raw[:4], "little") == crc32(raw[4:])
    assert pickle.loads(raw[4:]) == ("gradient", 3)
    request = comm.Isend(raw, 0, 7)
    assert received(mailbox) == [("gradient", 3)]
    request.Wait()


@pytest.mark.parametrize("damage", ["first byte", "body", "cut", "empty", "noise"])
def test_a_damaged_message_is_not_unpickled(comm, damage):
    body = pickle.dumps(("gradient", 3))
    raw = bytearray(crc32(body).to_bytes(4, "little") + body)
    if damage == "noise":
        raw = bytearray(range(40))
    elif damage in ("cut", "empty"):
        del raw[-1 if damage == "cut" else 0 :]
    else:
        raw[0 if damage == "first byte" else len(raw) // 2] ^= 1
    request = comm.Isend(raw, 0, 7)
    with pytest.raises(VoteError, match="a small message from rank 0 is damaged: expected check"):
        received(MpiMailbox(comm, 7))
    request.Wait()


class Two(LocalTransport):
    """Says that it connects two voters, of whom this is the first."""

    size = 2


def inline_round() -> tuple[InlineRound, bytes]:
    """A round in which a vote is under way, and its first voter's ballot."""
    bucket = Bucket(0, (TensorSpec("gradient", (70,), "float32", 0),))
    options = inline_options(VoteOptions())
    vote = InlineRound(Subject(bucket, MajorityVote(), Sign(), options, Two(), 0))
    voting = vote.run(5, [Operand(HOST, np.ones(70, np.float32), None)])
    next(voting)
    return vote, vote.pending.ballot


def from_second(ballot: bytes) -> bytes:
    """The ballot as the second voter would seal it."""
    vote, _ = inline_round()
    vote.messages.ballots[:] = np.frombuffer(ballot, np.uint8)
    vote.seal(vote.messages.ballots, 1, 0, 0, sender=1)
    return vote.messages.ballots.tobytes()


def test_whole_ballots_are_counted():
    vote, ballot = inline_round()
    assert len(vote.tally([ballot, from_second(ballot)])) == len(ballot) == 48 + 16 + 8


def test_damaged_ballots_name_their_rank():
    vote, ballot = inline_round()
    second = from_second(ballot)
    flipped = bytearray(second)
    flipped[50] ^= 4
    for damaged, sentence in (
        (second[:-1], "ballot from rank 1: expected 72 bytes, got 71"),
        (b"", "ballot from rank 1: expected 72 bytes, got 0"),
        (second * 2, "ballot from rank 1: expected 72 bytes, got 144"),
        (bytes(flipped), "check: checksum of the message from rank 1: expected 0x"),
        (ballot, "check: sender of the message from rank 1: expected 1, got 0"),
        (bytes(72), "check: magic of the message from rank 1: expected 0x47535648, got 0x0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            vote.tally([ballot, damaged])


def test_a_damaged_verdict_names_who_decided():
    vote, _ = inline_round()
    voting = vote.run(5, [Operand(HOST, np.ones(70, np.float32), None)])
    next(voting)
    vote.pending.answer(b"short")
    with pytest.raises(ValueError, match="verdict from rank 0: expected 72 bytes, got 5"):
        next(voting)


class Noise:
    """Pairs of voters that receive nothing but zeros."""

    def send(self, buffer, voter):
        return self

    def receive(self, buffer, voter):
        return self

    def test(self) -> bool:
        return True


class Node(LocalTransport):
    """A voter of five, on a node of those of the same letter."""

    size = 5

    def __init__(self, rank: int, layout: str) -> None:
        super().__init__()
        self.rank = rank
        self.nodes = Nodes(layout, rank, Noise())


def hierarchical_round(rank: int, layout: str, local: str = "vote") -> ReferenceRound:
    bucket = Bucket(0, (TensorSpec("gradient", (70,), "float32", 0),))
    options = VoteOptions(exchange="hierarchical", local=local)
    subject = Subject(bucket, MajorityVote(), Sign(), options, Node(rank, layout), 0)
    return ReferenceRound(subject)


@pytest.mark.parametrize("local", ["vote", "mean"])
def test_a_damaged_ballot_inside_a_node_names_the_neighbour_s_rank(local):
    vote = hierarchical_round(1, "xyxyy", local)
    voting = vote.run(5, [Operand(HOST, np.ones(70, np.float32), None)])
    with pytest.raises(ValueError, match=r"check: magic of the message from rank 3: expected"):
        list(voting)


def test_damage_between_nodes_names_the_leader_s_rank():
    """Rank 2 leads the second node, and is not rank 1."""
    vote = hierarchical_round(2, "xxyyy")
    vote.begin(5)
    ballots = vote.received.reshape(2, -1)
    for sender in (0, 1):
        vote.seal(ballots[sender], 1, 0, 0, sender=sender, shard=1)
    ballots[1, 50] ^= 1
    with pytest.raises(ValueError, match="check: checksum of the message from rank 2: expected"):
        vote.decide(1)
    vote.seal(vote.messages.verdicts[: ballots.shape[1]], 2, 0, 0, sender=0, shard=0)
    with pytest.raises(ValueError, match="check: magic of the message from rank 2: expected"):
        vote.check_verdicts()
