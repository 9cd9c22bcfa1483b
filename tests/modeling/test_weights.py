import logging
import re
from pathlib import Path

import pytest
import torch
import transformers
from checkpoint_fixtures import golden_value, official_encoder_name
from packaging.version import Version
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SegformerModel,
)

from mpcl.checkpoint.encoder_names import convert, infer_variant
from mpcl.checkpoint.foreign import convert_checkpoint
from mpcl.checkpoint.weight_files import find_weight_file, read, unwrap
from mpcl.checkpoint.weights import WeightsCheckpointer
from mpcl.modeling.mit import VARIANTS, MixTransformer


class Segmentor(nn.Module):
    """The least that has a backbone and something else."""

    def __init__(self, variant: str = "tiny") -> None:
        super().__init__()
        self.backbone = MixTransformer(variant=variant)
        self.sem_seg_head = nn.Conv2d(64, 3, 1)


# These read transformers' own modules under the names of its newest releases, which ask for Python
# 3.11; files with the older names are tested everywhere.
renamed_in_memory = pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.21"), reason="needs transformers >= 5.21"
)


@pytest.fixture(scope="module")
def ours() -> dict[str, Tensor]:
    """An encoder under our names whose every tensor is different."""
    with torch.device("meta"):
        names = MixTransformer(variant="tiny").state_dict()
    return {name: golden_value(name, t).float() for name, t in names.items()}


@pytest.fixture(scope="module")
def official(ours) -> dict[str, Tensor]:
    """The same encoder as the SegFormer authors would have saved it, with the classifier."""
    state = {official_encoder_name(name): tensor for name, tensor in ours.items()}
    return {**state, "head.weight": torch.ones(1000, 256), "head.bias": torch.ones(1000)}


@pytest.fixture(scope="module")
def hugging_face():
    config = SegformerConfig(hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], num_labels=7)
    torch.manual_seed(3)
    model = SegformerForImageClassification(config).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape), alpha=0.05)
    return model


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, msg=name)


def backbone_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.backbone.state_dict().items()}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


OFFICIAL_LAYOUTS = {
    "flat": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "meta": {"epoch": 3}},
    "model": lambda s: {"model": s, "epoch": 3},
    "data parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "segmentor": lambda s: {
        "state_dict": {**prefixed(s, "backbone."), "decode_head.conv_seg.weight": torch.ones(3, 1)}
    },
    "UDA, teacher first": lambda s: {
        "state_dict": {
            **prefixed({k: t + 1 for k, t in s.items()}, "ema_model.backbone."),
            **prefixed({k: t + 2 for k, t in s.items()}, "imnet_model.backbone."),
            **prefixed(s, "model.backbone."),
        }
    },
}


@pytest.mark.parametrize("layout", OFFICIAL_LAYOUTS)
def test_official_files_of_every_layout_load_into_the_backbone(layout, official, ours, tmp_path):
    path = tmp_path / "mit_b0.pth"
    torch.save(OFFICIAL_LAYOUTS[layout](official), path)
    model = Segmentor()
    head = model.sem_seg_head.weight.clone()
    WeightsCheckpointer(model).load(str(path))
    assert_same(backbone_of(model), ours)
    assert torch.equal(model.sem_seg_head.weight, head)


def openmmlab_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder under our names as OpenMMLab's: torch's attention, 1x1 convolutions."""
    renamed = {}
    for name, tensor in state.items():
        stage, rest = re.fullmatch(r"stages\.(\d)\.(.+)", name).groups()
        if rest.startswith("patch_embed."):
            rest = rest.replace("patch_embed.proj", "0.projection").replace("patch_embed", "0")
        elif rest.startswith("norm."):
            rest = rest.replace("norm", "2")
        elif ".attn.kv." in rest:
            continue
        else:
            rest = rest.replace("blocks.", "1.").replace(".attn.proj.", ".attn.attn.out_proj.")
            for ours, theirs in (("fc1", 0), ("dwconv", 1), ("fc2", 4)):
                rest = rest.replace(f"ffn.{ours}.", f"ffn.layers.{theirs}.")
            if ".attn.q." in rest:
                tensor = torch.cat([tensor, state[name.replace(".q.", ".kv.")]])
                rest = rest.replace(".attn.q.", ".attn.attn.in_proj_")
            if ".fc" in name and name.endswith("weight"):
                tensor = tensor[..., None, None]
        renamed[f"layers.{stage}.{rest}"] = tensor
    return renamed


@pytest.mark.parametrize("layout", ["flat", "segmentor"])
@torch.no_grad()
def test_openmmlabs_files_compute_the_same(layout, ours, tmp_path):
    theirs = openmmlab_names(ours)
    # Names and shapes as torch's own modules have them.
    block, attention = "layers.1.1.0.", nn.MultiheadAttention(16, 2).state_dict()
    prefix = f"{block}attn.attn."
    found = {n.removeprefix(prefix): t for n, t in theirs.items() if n.startswith(prefix)}
    assert {n: t.shape for n, t in found.items()} == {n: t.shape for n, t in attention.items()}
    assert theirs[f"{block}ffn.layers.0.weight"].shape == (64, 16, 1, 1)
    torch.save(OFFICIAL_LAYOUTS[layout](theirs), tmp_path / "mit_b0.pth")
    model = Segmentor()
    WeightsCheckpointer(model).load(str(tmp_path / "mit_b0.pth"))
    expected = MixTransformer(variant="tiny").eval()
    expected.load_state_dict(ours)
    images = torch.randn(1, 3, 64, 96)
    assert_same(model.backbone.eval()(images), expected(images))
    assert convert_checkpoint(tmp_path / "mit_b0.pth", tmp_path / "ours.pth").kind == (
        "OpenMMLab SegFormer MiT-tiny"
    )


def hugging_face_files(model: SegformerForImageClassification, folder: Path) -> dict[str, Path]:
    """Every way in which transformers' models end up on a disk."""
    paths = {}
    paths["folder"] = folder / "safetensors"
    model.save_pretrained(paths["folder"])
    paths["safetensors file"] = paths["folder"] / "model.safetensors"
    paths["names in memory"] = folder / "memory"
    model.save_pretrained(paths["names in memory"], save_original_format=False)
    paths["no classifier"] = folder / "encoder"
    model.segformer.save_pretrained(paths["no classifier"])
    paths["bin folder"] = folder / "bin"
    paths["bin folder"].mkdir()
    on_disk = load_file(paths["safetensors file"])
    torch.save(on_disk, paths["bin folder"] / "pytorch_model.bin")
    segmentation = SegformerForSemanticSegmentation(model.config)
    segmentation.segformer = model.segformer
    paths["segmentation"] = folder / "segmentation"
    segmentation.save_pretrained(paths["segmentation"])
    paths["flat in memory"] = folder / "flat.pth"
    torch.save(model.segformer.state_dict(), paths["flat in memory"])
    return paths


@renamed_in_memory
def test_hugging_face_files_of_every_layout_compute_what_transformers_computes(
    hugging_face, tmp_path
):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = hugging_face.segformer(images, output_hidden_states=True).hidden_states
    prefixes = set()
    for layout, path in hugging_face_files(hugging_face, tmp_path).items():
        prefixes.add(next(iter(unwrap(read(find_weight_file(path))))).split(".")[0])
        model = Segmentor().eval()
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-5  # as in transformers
        WeightsCheckpointer(model).load(str(path))
        with torch.no_grad():
            found = model.backbone(images)
        for feature, hidden in zip(found.values(), expected):
            torch.testing.assert_close(feature, hidden, rtol=0, atol=1e-4, msg=layout)
    assert {"stages", "encoder"} <= prefixes  # both naming schemes were among them


@renamed_in_memory
def test_a_key_without_its_value_is_refused(hugging_face):
    source = dict(hugging_face.state_dict())
    del source["segformer.stages.1.blocks.0.attention.v_proj.bias"]
    with pytest.raises(ValueError, match="value projection"):
        convert(source)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variant_is_told_by_widths_and_depths(variant):
    with torch.device("meta"):
        assert infer_variant(MixTransformer(variant=variant).state_dict()) == variant


def test_an_encoder_of_no_known_variant_is_refused():
    config = SegformerConfig(hidden_sizes=[16, 32, 80, 128], depths=[1, 1, 1, 1])
    state = convert(SegformerModel(config).state_dict()).state
    with pytest.raises(ValueError, match=r"16, 32, 80, 128.*b0.*b5"):
        infer_variant(state)


def test_another_variant_is_refused_by_name_and_changes_nothing(official, ours, tmp_path):
    torch.save(official, tmp_path / "mit_b0.pth")
    torch.save({"model": prefixed(ours, "backbone.")}, tmp_path / "own_b0.pth")
    model = Segmentor("b0")
    before = backbone_of(model)
    checkpointer = WeightsCheckpointer(model)
    for name in ("mit_b0.pth", "own_b0.pth"):
        with pytest.raises(ValueError, match=r"MiT-tiny, but MODEL\.MIT\.VARIANT is b0"):
            checkpointer.load(str(tmp_path / name))
    assert_same(backbone_of(model), before)


def test_an_incomplete_or_misshapen_encoder_is_refused(official, ours, tmp_path):
    damaged = dict(official)
    del damaged["block2.0.attn.sr.bias"]
    damaged["norm3.weight"] = torch.ones(7)
    torch.save(damaged, tmp_path / "damaged.pth")
    expected = r"1 missing \(stages.1.blocks.0.attn.sr.bias\); 1 misshapen \(stages.2.norm.weight\)"
    model = Segmentor()
    with pytest.raises(ValueError, match=expected):
        WeightsCheckpointer(model).load(str(tmp_path / "damaged.pth"))


@pytest.mark.parametrize("nested", [True, False])
def test_unknown_content_is_refused_with_the_known_kinds(nested, tmp_path):
    state = {f"layer1.{i}.conv.weight": torch.ones(2) for i in range(9)}
    torch.save({"model": state} if nested else state, tmp_path / "resnet.pth")
    message = r"layer1\.0\.conv\.weight, .*patch_embed1.*Hugging Face.*backbone\.stages"
    with pytest.raises(ValueError, match=message):
        WeightsCheckpointer(Segmentor()).load(str(tmp_path / "resnet.pth"))


def test_an_own_checkpoint_resumes_with_optimizer_and_iteration(tmp_path):
    def build():
        model = Segmentor()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, optimizer, WeightsCheckpointer(model, str(tmp_path), optimizer=optimizer)

    model, optimizer, checkpointer = build()
    model.sem_seg_head(torch.ones(1, 64, 1, 1)).sum().backward()
    optimizer.step()
    checkpointer.save("model_0000004", iteration=4)

    resumed, resumed_optimizer, checkpointer = build()
    rest = checkpointer.resume_or_load("unused.pth", resume=True)
    assert rest["iteration"] == 4
    assert_same(resumed.state_dict(), model.state_dict())
    assert len(resumed_optimizer.state) == len(optimizer.state) == 2

    started, fresh_optimizer, checkpointer = build()
    checkpointer.resume_or_load(str(tmp_path / "model_0000004.pth"), resume=False)
    assert_same(started.state_dict(), model.state_dict())
    assert not fresh_optimizer.state


def test_an_own_checkpoint_with_another_head_is_refused_unless_asked_for(tmp_path):
    torch.manual_seed(0)
    saved, model = Segmentor(), Segmentor()
    state = saved.state_dict()
    state["sem_seg_head.weight"] = torch.ones(9, 64, 1, 1)
    torch.save({"model": prefixed(state, "module.")}, tmp_path / "other_classes.pth")
    before = model.sem_seg_head.weight.clone()
    with pytest.raises(
        ValueError, match=r"sem_seg_head\.weight has \(9,.*expected \(3,.*ALLOW_UNM"
    ):
        WeightsCheckpointer(Segmentor()).load(str(tmp_path / "other_classes.pth"))
    WeightsCheckpointer(model, allow_unmatched=True).load(str(tmp_path / "other_classes.pth"))
    assert_same(backbone_of(model), backbone_of(saved))
    assert torch.equal(model.sem_seg_head.weight, before)
    assert torch.equal(model.sem_seg_head.bias, saved.sem_seg_head.bias)


def test_no_path_loads_nothing_and_a_refused_file_does_not_block_the_next(official, ours, tmp_path):
    model = Segmentor()
    checkpointer = WeightsCheckpointer(model)
    assert checkpointer.load("") == {}
    torch.save({"x": torch.ones(1)}, tmp_path / "wrong.pth")
    with pytest.raises(ValueError, match="no Mix Transformer"):
        checkpointer.load(str(tmp_path / "wrong.pth"))
    torch.save(official, tmp_path / "right.pth")
    checkpointer.load(str(tmp_path / "right.pth"))
    assert_same(backbone_of(model), ours)


def test_the_log_counts_matched_missing_and_left_out_tensors(official, ours, tmp_path, caplog):
    torch.save(official, tmp_path / "mit_b0.pth")
    checkpointer = WeightsCheckpointer(Segmentor())
    checkpointer.logger.propagate = True
    with caplog.at_level(logging.INFO, logger=checkpointer.logger.name):
        checkpointer.load(str(tmp_path / "mit_b0.pth"))
    assert (
        f"SegFormer MiT-tiny: {len(ours)} tensors matched; 2 tensors of the model keep their "
        "initial values; 2 tensors of the file are left out (head.weight, head.bias)"
    ) in caplog.text
    assert "not found in the checkpoint" not in caplog.text


def test_a_converted_file_loads_as_an_own_checkpoint(hugging_face, ours, tmp_path):
    hugging_face.save_pretrained(tmp_path / "mit-b0")
    foreign = convert_checkpoint(tmp_path / "mit-b0", tmp_path / "mit_b0.pth")
    assert (foreign.kind, len(foreign.networks["student"])) == ("Hugging Face MiT-tiny", len(ours))
    assert set(foreign.left_out) == {"classifier.weight", "classifier.bias"}
    model = Segmentor()
    WeightsCheckpointer(model).load(str(tmp_path / "mit_b0.pth"))
    assert_same(backbone_of(model), convert(hugging_face.state_dict()).state)


def test_conversion_refuses_incomplete_files_and_odd_endings(official, tmp_path):
    torch.save({k: t for k, t in official.items() if k != "norm1.bias"}, tmp_path / "src.pth")
    with pytest.raises(ValueError, match=r"1 missing \(stages.0.norm.bias\)"):
        convert_checkpoint(tmp_path / "src.pth", tmp_path / "dst.pth")
    with pytest.raises(ValueError, match=r"must end in \.pth"):
        convert_checkpoint(tmp_path / "src.pth", tmp_path / "dst.pkl")
    assert not (tmp_path / "dst.pth").exists()
