"""Motion adapters: whether one fits a base, and the noise levels it wants."""

import pytest
from diffusers import DDIMScheduler

from tests.tiny_motion import write_adapter
from utils.common.errors import UserError
from utils.sampling import clips as video_module
from utils.sampling.clips import load_video_pipeline
from utils.sampling.motion_adapters import PUBLISHED, check_adapter, noise_levels


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return write_adapter(tmp_path_factory.mktemp("adapter"), motion_max_seq_length=8)


def test_betas_are_linear_unless_the_adapter_records_its_own(adapter, tmp_path):
    base = DDIMScheduler(beta_start=0.001, beta_end=0.02, beta_schedule="scaled_linear").config
    published = noise_levels(base, adapter)
    assert published["beta_schedule"] == "linear" and published["timestep_spacing"] == "linspace"
    assert (published["beta_start"], published["beta_end"]) == (0.001, 0.02)
    assert noise_levels(base, adapter, "scaled_linear")["beta_schedule"] == "scaled_linear"

    recorded = write_adapter(tmp_path)
    DDIMScheduler(beta_start=0.003, beta_end=0.03, beta_schedule="scaled_linear").save_pretrained(recorded)
    own = noise_levels(base, recorded)
    assert (own["beta_start"], own["beta_end"], own["beta_schedule"]) == (0.003, 0.03, "scaled_linear")
    assert noise_levels(base, recorded, "linear")["beta_schedule"] == "linear"
    with pytest.raises(UserError, match="unknown beta schedule 'cosine'; choose one of linear"):
        noise_levels(base, recorded, "cosine")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": (32, 32)}, r"block channels \[32, 32\], base model .* \[32, 64\]"),
        ({"motion_layers_per_block": 2}, r"layers per block \[2, 2\], base model .* \[1, 1\]"),
        ({"motion_norm_num_groups": 16}, "normalisation groups 16, base model .* 8"),
        ({"conv_in_channels": 9}, "input channels 9, base model .* 4"),
    ],
)
def test_an_adapter_that_does_not_fit_is_reported_before_models_load(
    changes, words, tiny_base, tmp_path, monkeypatch
):
    monkeypatch.setattr(video_module, "load_pipeline", None)
    folder = write_adapter(tmp_path, **changes)
    with pytest.raises(UserError, match=words) as mistake:
        load_video_pipeline(tiny_base, folder)
    assert PUBLISHED in str(mistake.value) and "\n" not in str(mistake.value)


def test_an_adapter_of_another_prediction_type_does_not_fit(tiny_base, tmp_path):
    folder = write_adapter(tmp_path)
    assert check_adapter(folder, tiny_base) == 16
    DDIMScheduler(prediction_type="v_prediction").save_pretrained(folder)
    with pytest.raises(UserError, match="prediction type v_prediction, base model .* epsilon"):
        check_adapter(folder, tiny_base)


def test_what_is_no_adapter(tiny_base, tmp_path, monkeypatch):
    for nothing, words in (
        (tmp_path, "has no config.json; give one that MotionAdapter.save_pretrained wrote"),
        (tmp_path / "none", "is not a folder, though .* is one"),
        ("data/toon/none", "is not a folder, though .* is one"),
        ("adapter", "neither an existing folder nor a Hub id"),
    ):
        with pytest.raises(UserError, match=f"motion adapter.*{words}"):
            check_adapter(nothing, tiny_base)
    with pytest.raises(UserError, match="is a UNet2DConditionModel; give a MotionAdapter"):
        check_adapter(tiny_base / "unet", tiny_base)

    def gone(repository, file, revision):
        assert (repository, file, revision) == ("owner/gone", "config.json", None)
        raise OSError

    monkeypatch.setattr("utils.bases.pretrained.hf_hub_download", gone)
    monkeypatch.setattr("utils.bases.pretrained.hub_answers", lambda: True)
    with pytest.raises(UserError, match="a model that the Hub gives out"):
        check_adapter("owner/gone", tiny_base)
