import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asiarch_hpc.errors import ConfigError, CorpusError
from asiarch_hpc.training.data import IGNORED, Batches
from asiarch_hpc.training.documents import Documents

STRIDE = 1000  # document i holds the ids 1000 i, 1000 i + 1, …: every id says where it comes from


def make_documents(lengths: list[int]) -> Documents:
    """Two shards, of which the first is empty where there is one document only."""
    offsets = np.cumsum([0, *lengths], dtype=np.int64)
    tokens = np.asarray([STRIDE * i + j for i, n in enumerate(lengths) for j in range(n)], dtype=np.uint32)
    cut = int(offsets[len(lengths) // 2])
    return Documents([tokens[:cut], tokens[cut:]], offsets)


def test_documents_are_read_across_shards() -> None:
    documents = make_documents([3, 0, 2, 4])
    assert [documents[i].tolist() for i in range(4)] == [[0, 1, 2], [], [2000, 2001], [3000, 3001, 3002, 3003]]
    assert documents[-1].tolist() == documents[3].tolist()
    assert documents.read(1, 5).tolist() == [1, 2, 2000, 2001, 3000]
    assert documents.read(9, 0).tolist() == []
    with pytest.raises(IndexError):
        documents[4]


lengths_strategy = st.lists(st.integers(0, 40), min_size=1, max_size=25).filter(lambda n: max(n) >= 2)


@given(lengths=lengths_strategy, length=st.integers(1, 16), batch_size=st.integers(1, 5), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_an_epoch_is_every_prediction_once_and_none_across_documents(
    lengths: list[int], length: int, batch_size: int, seed: int
) -> None:
    batches = Batches(make_documents(lengths), length=length, batch_size=batch_size, seed=seed, padding=0)
    seen: list[tuple[int, int]] = []
    rows = 0
    step = 0
    while rows < 2 * batches.rows:  # two whole epochs, row by row
        batch = batches.batch(step)
        assert batch.inputs.shape == batch.targets.shape == (batch_size, length)
        assert batch.tokens == batch.global_tokens == int((batch.targets != IGNORED).sum())
        for row in range(batch_size):
            if rows < 2 * batches.rows:
                pairs = zip(batch.inputs[row].tolist(), batch.targets[row].tolist(), strict=True)
                seen += [(a, b) for a, b in pairs if b != IGNORED]
            rows += 1
        step += 1
    expected = [(STRIDE * i + j, STRIDE * i + j + 1) for i, n in enumerate(lengths) for j in range(n - 1)]
    assert sorted(seen) == sorted(expected * 2)


def test_targets_stay_in_their_document_where_documents_meet_in_a_row() -> None:
    batches = Batches(make_documents([4, 3, 6, 2]), length=8, batch_size=1, seed=0, padding=0)
    batch = batches.batch(0)
    documents = {int(i) // STRIDE for i in batch.inputs[0]}
    assert len(documents) > 1  # this row does hold several documents
    real = batch.targets[0] != IGNORED
    assert (batch.inputs[0][real] // STRIDE == batch.targets[0][real] // STRIDE).all()


@given(lengths=lengths_strategy, length=st.integers(1, 16), batch_size=st.integers(1, 5), step=st.integers(0, 20))
@settings(deadline=None, max_examples=60)
def test_positions_name_their_document(lengths: list[int], length: int, batch_size: int, step: int) -> None:
    batch = Batches(make_documents(lengths), length=length, batch_size=batch_size, seed=1, padding=0).batch(step)
    assert ((batch.documents == -1) == (batch.targets == IGNORED)).all()
    for ids, numbers in zip(batch.inputs.tolist(), batch.documents.tolist(), strict=True):
        pairs = [(number, token // STRIDE) for number, token in zip(numbers, ids, strict=True) if number >= 0]
        order = list(dict.fromkeys(pairs))
        assert [number for number, _ in order] == list(range(len(order)))  # counted up from 0, each number one document
        assert len({document for _, document in order}) == len(order)


@given(lengths=lengths_strategy, world=st.integers(1, 6), share=st.integers(1, 3), step=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_ranks_share_the_same_batch(lengths: list[int], world: int, share: int, step: int) -> None:
    batches = Batches(make_documents(lengths), length=8, batch_size=world * share, seed=1, padding=0)
    whole = batches.batch(step)
    parts = [batches.batch(step, rank=rank, world=world) for rank in range(world)]
    for name in ("inputs", "targets", "documents"):
        assert torch.cat([getattr(part, name) for part in parts]).equal(getattr(whole, name))
    assert sum(part.tokens for part in parts) == whole.tokens
    assert {part.global_tokens for part in parts} == {whole.tokens}
    assert all(part.tokens == int((part.targets != IGNORED).sum()) for part in parts)


def test_rows_must_share_out_evenly() -> None:
    batches = Batches(make_documents([9, 9]), length=8, batch_size=6, seed=0, padding=0)
    with pytest.raises(ConfigError, match=r"batch_size=6: a multiple of the 4 processes"):
        batches.batch(0, rank=0, world=4)


def test_rows_are_full_but_the_last() -> None:
    batches = Batches(make_documents([30, 17, 9, 21]), length=8, batch_size=1, seed=1, padding=0)
    counts = sorted(batches.batch(step).tokens for step in range(batches.rows))
    assert counts[1:] == [8] * (batches.rows - 1)
    assert sum(counts) == 29 + 16 + 8 + 20


def test_padding_is_masked_and_not_counted() -> None:
    batch = Batches(make_documents([4]), length=8, batch_size=2, seed=0, padding=77).batch(0)
    assert batch.tokens == 6
    assert batch.inputs.tolist() == [[0, 1, 2, 77, 77, 77, 77, 77]] * 2
    assert batch.targets.tolist() == [[1, 2, 3, *[IGNORED] * 5]] * 2


def test_a_batch_is_a_function_of_its_number() -> None:
    documents = make_documents([25, 31, 12, 40, 9])
    forward = Batches(documents, length=8, batch_size=3, seed=5, padding=0)
    expected = [forward.batch(step) for step in range(40)]
    fresh = Batches(documents, length=8, batch_size=3, seed=5, padding=0)
    for step in (39, 0, 17, 23):
        assert fresh.batch(step).inputs.equal(expected[step].inputs)
        assert fresh.batch(step).targets.equal(expected[step].targets)


def test_seeds_and_epochs_have_orders_of_their_own() -> None:
    documents = make_documents([201] * 20)

    def first(seed: int, step: int) -> list[int]:
        return Batches(documents, length=8, batch_size=4, seed=seed, padding=0).batch(step).inputs[:, 0].tolist()

    rows = Batches(documents, length=8, batch_size=4, seed=0, padding=0).rows
    assert rows % 4 == 0
    assert first(0, 0) != first(1, 0)
    assert first(0, 0) != first(0, rows // 4)


def test_nothing_to_train_on() -> None:
    with pytest.raises(CorpusError, match="no pair of tokens"):
        Batches(make_documents([1, 0, 1]), length=8, batch_size=1, seed=0, padding=0)
