import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import ConfigError, CorpusError
from asiarch_hpc.training.data import IGNORED, Batch, Batches
from asiarch_hpc.training.documents import Documents

STRIDE = 1000  # document i holds the separator and the ids 1000 i + 1, 1000 i + 2, …: ids say where they come from
SEPARATOR = 999_999


def make_documents(lengths: list[int]) -> Documents:
    """Two shards, of which the first is empty where there is one document only."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    ids = [STRIDE * i + j if j else SEPARATOR for i, n in enumerate(lengths) for j in range(n)]
    tokens = np.asarray(ids, dtype=np.uint32)
    cut = int(offsets[len(lengths) // 2])
    return Documents([tokens[:cut], tokens[cut:]], offsets)


def make_batches(
    lengths: list[int], *, length: int = 8, batch_size: int = 1, seed: int = 0, window: int = 5
) -> Batches:
    documents = make_documents(lengths)
    return Batches(
        documents, length=length, batch_size=batch_size, seed=seed, separator=SEPARATOR, window=window
    )  # fmt: skip


class Piece(NamedTuple):
    """A run of positions with one document's number."""

    number: int
    inputs: list[int]
    targets: list[int]


def pieces_of(batch: Batch, row: int) -> list[Piece]:
    """What a row holds, without the padding at its end, which is checked."""
    columns = zip(batch.documents[row].tolist(), batch.inputs[row].tolist(), batch.targets[row].tolist(), strict=True)
    runs = [(number, list(run)) for number, run in itertools.groupby(columns, key=lambda column: column[0])]
    if runs[-1][0] == -1:
        assert {column[1:] for column in runs.pop()[1]} == {(SEPARATOR, IGNORED)}
    return [Piece(number, [a for _, a, _ in run], [b for _, _, b in run]) for number, run in runs]


def test_documents_are_read_across_shards() -> None:
    documents = make_documents([3, 0, 2, 4])
    expected = [[SEPARATOR, 1, 2], [], [SEPARATOR, 2001], [SEPARATOR, 3001, 3002, 3003]]
    assert [documents[i].tolist() for i in range(4)] == expected
    assert documents[-1].tolist() == documents[3].tolist()
    assert documents.read(1, 5).tolist() == [1, 2, SEPARATOR, 2001, SEPARATOR]
    assert documents.read(9, 0).tolist() == []
    with pytest.raises(IndexError):
        documents[4]


lengths_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=25).filter(lambda n: max(n) >= 2)


@given(
    lengths=lengths_strategy,
    length=st.integers(1, 16),
    batch_size=st.integers(1, 5),
    seed=st.integers(0, 9),
    window=st.integers(1, 30),
)
@settings(deadline=None, max_examples=60)
def test_an_epoch_is_every_token_once_in_pieces_that_begin_with_the_separator(
    lengths: list[int], length: int, batch_size: int, seed: int, window: int
) -> None:
    batches = make_batches(lengths, length=length, batch_size=batch_size, seed=seed, window=window)
    begins: list[int] = []  # first token of each piece
    seen: list[int] = []
    for index in range(2 * batches.rows):  # two whole epochs, row by row
        batch = batches.batch(index // batch_size)
        assert batch.inputs.shape == batch.targets.shape == (batch_size, length)
        assert batch.tokens == batch.global_tokens == int((batch.targets != IGNORED).sum())
        assert (batch.inputs[:, 0] == SEPARATOR).all()
        for _, inputs, targets in pieces_of(batch, index % batch_size):
            assert inputs == [SEPARATOR, *targets[:-1]]
            assert targets == list(range(targets[0], targets[0] + len(targets)))
            begins.append(targets[0])
            seen += targets
    assert sorted(seen) == sorted(2 * [STRIDE * i + j for i, n in enumerate(lengths) for j in range(1, n)])
    assert len(seen) == 2 * batches.predictions
    # documents are cut where a row is full, and nowhere else
    assert sorted(begins) == sorted(2 * [STRIDE * i + j for i, n in enumerate(lengths) for j in range(1, n, length)])


@given(lengths=lengths_strategy, length=st.integers(1, 16), batch_size=st.integers(1, 5), step=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_positions_name_their_document(lengths: list[int], length: int, batch_size: int, step: int) -> None:
    batch = make_batches(lengths, length=length, batch_size=batch_size, seed=1).batch(step)
    assert ((batch.documents == -1) == (batch.targets == IGNORED)).all()
    for row in range(batch_size):
        pieces = pieces_of(batch, row)
        assert [piece.number for piece in pieces] == list(range(len(pieces)))  # counted up from 0, none comes back
        assert len({piece.targets[0] // STRIDE for piece in pieces}) == len(pieces)


def test_short_documents_and_last_pieces_share_rows() -> None:
    batches = make_batches([4, 3, 14, 2, 9, 7])  # predictions: 3, 2, 8 + 5, 1, 8, 6
    rows = [[len(piece.targets) for piece in pieces_of(batches.batch(step), 0)] for step in range(batches.rows)]
    assert sorted(sorted(row) for row in rows) == [[1], [2, 6], [3, 5], [8], [8]]


@given(lengths=lengths_strategy, world=st.integers(1, 6), share=st.integers(1, 3), step=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_ranks_share_the_same_batch(lengths: list[int], world: int, share: int, step: int) -> None:
    batches = make_batches(lengths, batch_size=world * share, seed=1)
    whole = batches.batch(step)
    # as many objects as in a training of several processes
    parts = [
        make_batches(lengths, batch_size=world * share, seed=1).batch(step, rank=r, world=world) for r in range(world)
    ]
    for name in ("inputs", "targets", "documents"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name))
    assert sum(part.tokens for part in parts) == whole.tokens
    assert {part.global_tokens for part in parts} == {whole.tokens}
    assert all(part.tokens == int((part.targets != IGNORED).sum()) for part in parts)


def test_rows_must_share_out_evenly() -> None:
    with pytest.raises(ConfigError, match=r"batch_size=6: a multiple of the 4 processes"):
        make_batches([9, 9], batch_size=6).batch(0, rank=0, world=4)


def test_padding_is_masked_and_not_counted() -> None:
    batch = make_batches([4], batch_size=2).batch(0)
    assert (batch.tokens, batch.global_tokens) == (6, 6)
    assert batch.inputs.tolist() == [[SEPARATOR, 1, 2, *[SEPARATOR] * 5]] * 2
    assert batch.targets.tolist() == [[1, 2, 3, *[IGNORED] * 5]] * 2
    assert batch.documents.tolist() == [[0, 0, 0, *[-1] * 5]] * 2


def test_a_batch_is_a_function_of_its_number() -> None:
    lengths = [25, 31, 12, 40, 9]
    forward = make_batches(lengths, batch_size=3, seed=5)
    expected = [forward.batch(step) for step in range(40)]
    fresh = make_batches(lengths, batch_size=3, seed=5)
    for step in (39, 0, 17, 23):
        for name in ("inputs", "targets", "documents"):
            assert getattr(fresh.batch(step), name).equal(getattr(expected[step], name))


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    def first(seed: int, step: int) -> list[int]:
        return make_batches([201] * 20, batch_size=4, seed=seed).batch(step).targets[:, 0].tolist()

    rows = make_batches([201] * 20, batch_size=4).rows
    assert rows % 4 == 0
    assert first(0, 0) != first(1, 0)
    assert first(0, 0) != first(0, rows // 4)


def test_seeds_have_companions_of_their_own_and_no_order_by_size() -> None:
    lengths = [2 + i % 7 for i in range(60)]

    def rows_of(seed: int) -> set[tuple[int, ...]]:
        batches = make_batches(lengths, seed=seed, window=30)
        return {tuple(p.targets[0] for p in pieces_of(batches.batch(step), 0)) for step in range(batches.rows)}

    assert rows_of(0) != rows_of(1)
    sizes = [[lengths[begin // STRIDE] for begin in row] for row in rows_of(0)]
    assert any(size != sorted(size, reverse=True) for size in sizes)
    assert any(size == sorted(size, reverse=True) and len(set(size)) > 1 for size in sizes)


def test_a_document_without_the_separator_is_refused() -> None:
    documents = Documents([np.asarray([SEPARATOR, 1, 2, 3, 4, 5], dtype=np.uint32)], np.asarray([0, 3, 6]))
    batches = Batches(documents, length=8, batch_size=1, seed=0, separator=SEPARATOR, window=5)
    with pytest.raises(
        CorpusError, match=rf"document 1 begins with token 3, expected the end-of-text token {SEPARATOR}"
    ):
        batches.batch(0)


def test_nothing_to_train_on() -> None:
    with pytest.raises(CorpusError, match="no pair of tokens"):
        make_batches([1, 0, 1])
