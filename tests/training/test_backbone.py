import math

import pytest
import torch
import torch.nn.functional as F

from asiarch_hpc.config import ScaleConfig
from asiarch_hpc.errors import DesignError
from asiarch_hpc.training.backbone import build_model, count_parameters


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dim", [16, 512])
def test_untrained_loss_is_that_of_a_uniform_guess(source: str, tied: bool, dim: int) -> None:
    vocab = 2048
    model = build_model(source, vocab=vocab, scale=ScaleConfig(tie_embeddings=tied), dim=dim, depth=2, seed=0)
    ids = torch.randint(0, vocab, (4, 33), generator=torch.Generator().manual_seed(0))
    logits, _ = model(ids[:, :-1])
    assert logits.shape == (4, 32, vocab)
    following = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    assert abs(following / math.log(vocab) - 1) < 0.05
    # A tied head sees the current token; its logit must not run away with the width.
    repeating = F.cross_entropy(logits.flatten(0, 1), ids[:, :-1].flatten()).item()
    assert abs(repeating / math.log(vocab) - 1) < 0.15


def test_equal_seeds_give_equal_weights_and_leave_the_random_state(source: str, scale: ScaleConfig) -> None:
    state = torch.get_rng_state()
    first, second, other = (
        build_model(source, vocab=50, scale=scale, dim=16, depth=2, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    weights = [dict(m.named_parameters()) for m in (first, second, other)]
    assert all(torch.equal(weights[0][n], weights[1][n]) for n in weights[0])
    assert not torch.equal(weights[0]["embedding.weight"], weights[2]["embedding.weight"])


@pytest.mark.parametrize("tied", [False, True])
def test_size_leaves_out_embedding_and_head(source: str, tied: bool) -> None:
    model = build_model(source, vocab=999, scale=ScaleConfig(tie_embeddings=tied), dim=16, depth=3, seed=0)
    block = 16 + 2 * 16 * 16
    assert model.non_embedding_parameters() == 3 * block + 16
    assert count_parameters(source, dim=16, depth=3, heads=2, ffn_multiple=2.0) == 3 * block + 16


def test_counting_falls_back_to_real_tensors(source: str) -> None:
    reads_values = source.replace("self.dropout =", "self.top = float(self.gate.weight.max())\n        self.dropout =")
    assert count_parameters(reads_values, dim=16, depth=1, heads=2, ffn_multiple=2.0) == 2 * 16 + 2 * 16 * 16


def test_counting_an_impossible_size_is_a_design_error(source: str) -> None:
    picky = source.replace("super().__init__()", "super().__init__()\n        assert dim % 3 == 0, 'thirds'")
    with pytest.raises(DesignError, match="thirds"):
        count_parameters(picky, dim=16, depth=1, heads=2, ffn_multiple=2.0)


def test_auxiliary_losses_of_all_blocks_are_added(source: str, scale: ScaleConfig) -> None:
    with_loss = source.replace("return X", "Z['auxiliary_loss'] = self.norm.weight.sum() * 0 + 2.5\n        return X")
    ids = torch.zeros(1, 4, dtype=torch.int64)
    assert build_model(source, vocab=9, scale=scale, dim=8, depth=3, seed=0)(ids)[1] is None
    _, auxiliary = build_model(with_loss, vocab=9, scale=scale, dim=8, depth=3, seed=0)(ids)
    assert auxiliary is not None
    assert auxiliary.item() == 7.5


def test_a_design_that_asks_for_documents_can_keep_them_apart(source: str, asking: str, scale: ScaleConfig) -> None:
    model = build_model(asking, vocab=50, scale=scale, dim=16, depth=2, seed=0).eval()
    ids = torch.randint(0, 50, (1, 8), generator=torch.Generator().manual_seed(0))
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]], dtype=torch.int32)
    apart, _ = model(ids, documents)
    alone, _ = model(ids[:, 4:])
    torch.testing.assert_close(apart[:, 4:], alone)
    assert not torch.allclose(model(ids)[0][:, 4:], alone, atol=1e-3)
    plain = build_model(source, vocab=50, scale=scale, dim=16, depth=2, seed=0).eval()
    assert torch.equal(plain(ids, documents)[0], plain(ids)[0])
    assert (model.asks_for_documents, plain.asks_for_documents) == (True, False)
