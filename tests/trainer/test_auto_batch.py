"""batch_size="auto": the search, what it makes of the result, and the step it measures."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rfdetr_edge.errors import InputError
from rfdetr_edge.variants import VARIANTS
from trainer.auto_batch import batch_plan, largest_that_fits, probe_batch_size, synthetic_step
from trainer.config import TrainConfig
from trainer.model.rfdetr import RFDETR

SIDE = 96
CONFIG = TrainConfig(dataset_dir=Path("data"), batch_size="auto")
WEIGHTS = CONFIG.coefficients


@pytest.fixture(params=["tiny", "seg-tiny", "keypoint-tiny"])
def network(request: pytest.FixtureRequest) -> RFDETR:
    torch.manual_seed(0)
    return RFDETR(VARIANTS[request.param], 4)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no GPU: the probe measures the memory of a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@given(limit=st.integers(0, 200), most=st.integers(1, 150))
def test_the_search_finds_the_limit(limit, most):
    asked = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count <= limit

    assert largest_that_fits(fits, most) == min(limit, most)
    assert max(asked) <= most
    assert len(asked) == len(set(asked)) <= 15


@pytest.mark.parametrize(
    ("largest", "use_ema", "plan"),
    [
        (128, False, (115, 1)),
        (128, True, (80, 1)),
        (10, False, (9, 2)),
        (10, True, (6, 3)),
        (100, True, (63, 1)),  # 0.7 * 90 is 62.99... in floating point
        (1, True, (1, 16)),
    ],
)
def test_room_is_left_and_steps_make_up_sixteen_images(largest, use_ema, plan):
    config = CONFIG.model_copy(update={"use_ema": use_ema})
    assert batch_plan(largest, config) == plan


def test_another_target_takes_more_steps():
    config = CONFIG.model_copy(update={"auto_batch_target_effective": 64})
    assert batch_plan(10, config) == (6, 11)


def test_without_cuda_a_number_is_asked_for(network):
    with pytest.raises(RuntimeError, match="this run is on cpu; give a number"):
        probe_batch_size(network, CONFIG, device=torch.device("cpu"), side=SIDE, autocast=None)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
def test_a_synthetic_step_changes_nothing(network, autocast):
    network.train().encoder.requires_grad_(False)
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    gradient = torch.ones_like(network.class_head.weight)
    network.class_head.weight.grad = gradient.clone()
    synthetic_step(network, 2, WEIGHTS, side=SIDE, autocast=autocast)
    assert all(torch.equal(weights[name], found) for name, found in network.state_dict().items())
    assert torch.equal(network.class_head.weight.grad, gradient)
    assert network.box_head.layers[0].weight.grad is None


def test_a_synthetic_step_keeps_every_query_group_for_the_gradients(network):
    saved = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        synthetic_step(network.train(), 2, WEIGHTS, side=SIDE, autocast=None)
    queries = network.variant.num_queries * network.variant.groups
    assert any(shape[:2] == (2, queries) for shape in saved)


def _memory(limit: float) -> None:
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(limit)


def test_a_gpu_holds_the_batch_it_is_given(network, cuda):
    total = torch.cuda.get_device_properties(cuda).total_memory
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    config = CONFIG.model_copy(update={"use_ema": False})
    options = {"device": cuda, "side": 384, "autocast": torch.bfloat16}
    try:
        _memory(2 * 2**30 / total)
        size, steps = probe_batch_size(network, config, **options)
        assert 1 < size < 115  # memory was the limit, not the search
        assert steps == -(-16 // size)
        synthetic_step(network.to(cuda).train(), size, WEIGHTS, side=384, autocast=torch.bfloat16)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            synthetic_step(network, 2 * size, WEIGHTS, side=384, autocast=torch.bfloat16)
        network.cpu()
        assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
        _memory(64 * 2**20 / total)
        with pytest.raises(InputError, match="not even one image of 384x384 fits"):
            probe_batch_size(network, config, **options)
    finally:
        _memory(1.0)
