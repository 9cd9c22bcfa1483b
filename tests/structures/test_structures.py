"""Views and steps: what is known of each pixel, on the image and on the embeddings' grid."""

import pytest
import torch

from mpcl.structures import Box, Detail, Outputs, Pixels, Step, View

C, K, D, IGNORED = 3, 2, 4, 255


def make_view(height=8, width=12):
    """A view whose maps tell every pixel from its neighbours."""
    torch.manual_seed(0)
    label = torch.randint(0, C + 1, (2, height, width))
    label[label == C] = IGNORED
    weight, trusted, from_source = torch.rand(3, 2, height, width)
    return View(torch.randn(2, 3, height, width), label, weight, trusted > 0.5, from_source > 0.5)


@pytest.mark.parametrize("grid", [(2, 3), (8, 12), (3, 5)])
def test_pixels_are_those_next_to_the_centres_of_the_cells(grid):
    view, embeddings = make_view(), torch.randn(2, D, *grid)
    pixels = Pixels.of(view, embeddings, C, K)
    for i, j in torch.cartesian_prod(*map(torch.arange, grid)).tolist():
        # Even strides have their centre between pixels; the one behind it is taken.
        y, x = int((i + 0.5) * 8 / grid[0]), int((j + 0.5) * 12 / grid[1])
        assert torch.equal(pixels.label[:, i, j], view.label[:, y, x].clamp(max=C))
        assert torch.equal(pixels.weight[:, i, j], view.weight[:, y, x])
        assert torch.equal(pixels.from_source[:, i, j], view.from_source[:, y, x])
        known = view.label[:, y, x] != IGNORED
        assert torch.equal(pixels.trusted[:, i, j], view.trusted[:, y, x] & known)
    assert pixels.label.dtype == torch.int64 and (pixels.cluster == C * K).all()
    rows = pixels.rows.view(2, *grid, D)
    assert torch.equal(rows, embeddings.permute(0, 2, 3, 1))
    both = Pixels.cat([pixels, pixels])
    assert both.cluster.shape == (4, *grid)
    assert torch.equal(both.rows, torch.cat([pixels.rows, pixels.rows]))


def test_source_is_trusted_where_it_is_labelled_and_target_is_unknown():
    images, label = torch.randn(1, 3, 1, 2), torch.tensor([[[1, IGNORED]]])
    source = View.of_source(images, label)
    assert source.images is images and source.label is label
    assert source.weight.tolist() == [[[1, 1]]] and source.weight.dtype == torch.float32
    assert source.trusted.tolist() == [[[True, False]]]
    assert source.from_source.tolist() == [[[True, True]]]
    valid, shown = torch.tensor([[[True, False]]]), torch.tensor([[[True, True]]])
    target = View.of_target(images, shown, valid)
    assert target.label.tolist() == [[[IGNORED] * 2]] and target.label.dtype == torch.int64
    assert target.weight.tolist() == [[[1, 0]]] and target.weight.dtype == torch.float32
    assert torch.equal(target.trusted, shown) and not target.from_source.any()


def test_join_each_and_crop_change_every_tensor_and_no_original():
    one, other = make_view(), make_view().each(lambda value: value.roll(1, -1))
    both = one.join(other, lambda a, b: torch.cat([a, b]))
    part = one.crop(Box(1, 2, 5, 10))
    for name, value in vars(one).items():
        assert torch.equal(getattr(both, name), torch.cat([value, getattr(other, name)]))
        assert torch.equal(getattr(part, name), value[..., 1:5, 2:10])
        assert (
            getattr(part, name).untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        )


def make_batch(**changes):
    def record(name, **fields):
        return {"file_name": f"{name}.png", "image": torch.full((3, 4, 6), len(name))} | fields

    label, shown = torch.arange(24).view(4, 6) % C, torch.ones(4, 6, dtype=torch.bool)
    shown[:, 0] = False
    valid = shown.clone()
    valid[0] = False
    source = [record("s", sem_seg=label), record("ss", sem_seg=label + 1)]
    return {"source": source, "target": [record("ttt", shown=shown, valid=valid)]} | changes


def normalize(records):
    return torch.stack([record["image"].float() for record in records])


def test_a_step_holds_the_batch():
    step = Step.from_batch(7, make_batch(), normalize)
    assert step.iteration == 7 and step.files == ("s.png", "ss.png", "ttt.png")
    assert step.source.images.mean((1, 2, 3)).tolist() == [1, 2]
    assert torch.equal(step.source.label[1], step.source.label[0] + 1)
    assert step.target.images.mean() == 3
    assert step.target.weight[0].tolist() == [[0] * 6] + [[0] + [1] * 5] * 3
    assert step.target.trusted[0].tolist() == [[False] + [True] * 5] * 4  # what shows something
    assert list(step.views) == ["source"]  # the student never sees the target itself
    step.mixed = step.source
    assert list(step.images) == ["source", "mixed"]


@pytest.mark.parametrize("dtype, ids", [(torch.uint8, 255), (torch.int16, 300), (torch.int64, 300)])
def test_labels_of_any_integer_type_are_the_same_on_the_device(dtype, ids):
    label = (torch.arange(24).view(4, 6) * 41 % (ids + 1)).to(dtype)
    label[0, 0] = IGNORED
    record = {"file_name": "s.png", "image": torch.zeros(3, 4, 6), "sem_seg": label}
    found = Step.from_batch(0, {"source": [record]}, normalize).source
    assert found.label.dtype == torch.int64 and found.label[0].tolist() == label.tolist()
    assert not found.trusted[0, 0, 0] and found.trusted.sum() == (label != IGNORED).sum()


def test_source_only_has_no_target():
    batch = make_batch()
    del batch["target"]
    step = Step.from_batch(0, batch, normalize)
    assert step.target is None and step.files == ("s.png", "ss.png")


def test_the_detail_is_embedded_inside_its_box():
    view, box = make_view(), Box(0, 4, 8, 12)
    context, detail = torch.randn(2, D, 2, 3), torch.randn(2, D, 4, 4)
    outputs = {
        "source": Outputs(context, context, context, context, Detail(box, detail, detail, detail))
    }
    step = Step(0, view, outputs=outputs)
    for scale, seen, embeddings in (("context", view, context), ("detail", view.crop(box), detail)):
        pixels = step.pixels_at(scale, C, K)["source"]
        torch.testing.assert_close(vars(pixels), vars(Pixels.of(seen, embeddings, C, K)))
