"""Learning rates under --scale_lr, schedules, pools of views."""

import pytest

from tests.training_flags import mistake, single
from utils.config.optimisation_flags import LR_SCHEDULERS
from utils.config.train_config import parse_config

pytestmark = pytest.mark.usefixtures("workplace")


def test_scaled_learning_rates():
    sizes = ["--train_batch_size=3", "--gradient_accumulation_steps=5"]
    config = single("--scale_lr", "--token_learning_rate=1e-3", *sizes)
    assert config.learning_rate_of("learning_rate", processes=2) == pytest.approx(30e-5, rel=1e-12)
    assert config.learning_rate_of("token_learning_rate", processes=2) == pytest.approx(30e-3, rel=1e-12)


def test_the_custom_diffusion_family_doubles_its_rates_with_a_prior_under_scale_lr():
    """As in all three published scripts; DreamBooth's does not."""
    rates = {
        method: single(f"--method={method}", *flags).learning_rate_of("learning_rate", prior=True)
        for method, flags in {"custom_diffusion": ["--scale_lr"], "dreambooth": ["--scale_lr"]}.items()
    }
    assert rates == {"custom_diffusion": 4e-5, "dreambooth": 2e-5}  # 1e-5 x batch 2, and twice that
    assert single("--method=custom_diffusion").learning_rate_of("learning_rate", prior=True) == 1e-5
    assert single("--scale_lr").learning_rate_of("learning_rate", prior=False) == 2e-5


def test_schedules_are_known_to_diffusers():
    from diffusers.optimization import TYPE_TO_SCHEDULER_FUNCTION, SchedulerType

    assert {SchedulerType(name) for name in LR_SCHEDULERS} == TYPE_TO_SCHEDULER_FUNCTION.keys() - {
        SchedulerType.PIECEWISE_CONSTANT
    }


def test_a_pool_of_views_where_there_is_one_view_is_refused():
    mistake(lambda: single("--noaug", "--latent_pool=4"), "--latent_pool", "--noaug", "leave it out")
    flags = ["--preset=none", "--instance_data_dir=data/dog", "--cls_token=dog", "--latent_pool=4"]
    mistake(lambda: parse_config([*flags, "--method=textual_inversion"]), "--latent_pool has no effect")
    assert parse_config([*flags, "--method=dreambooth"]).latent_pool == 4  # its random crops are views
