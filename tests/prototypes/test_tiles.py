"""Tiles hold every labelled pixel once, and nothing else counts."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.tiles import tile_by_class


@settings(deadline=None, max_examples=60)
@given(
    label=st.lists(st.integers(0, 5), min_size=1, max_size=60),
    size=st.integers(1, 9),
)
def test_every_labelled_pixel_has_one_place_in_a_tile_of_its_class(label, size):
    num_classes = 5
    label = torch.tensor(label)
    tiles = tile_by_class(label, num_classes, size)
    held = tiles.pixel[tiles.valid]
    assert sorted(held.tolist()) == (label < num_classes).nonzero().flatten().tolist()
    of_tile = tiles.label.unsqueeze(1).expand_as(tiles.pixel)
    assert torch.equal(label[held], of_tile[tiles.valid])
    back = tiles.collect(tiles.lay_out(torch.arange(len(label))))
    assert torch.equal(back[label < num_classes], torch.arange(len(label))[label < num_classes])


def test_own_similarity_is_a_column_of_all_of_them():
    torch.manual_seed(0)
    for kind in (CentroidPrototypes, GaussianPrototypes):
        prototypes = kind(7, 3, 16, momentum=0.9)
        everywhere = torch.ones(7, dtype=torch.bool)
        prototypes.start_(everywhere, torch.randn(7, 3, 16), torch.rand(7, 3, 16) + 0.1)
        embeddings, label = torch.randn(500, 16), torch.randint(0, 8, (500,))
        own = prototypes.own_similarity(embeddings, label)
        labelled = label < 7
        expected = prototypes.similarity(embeddings)[labelled, label[labelled]]
        torch.testing.assert_close(own[labelled], expected)
