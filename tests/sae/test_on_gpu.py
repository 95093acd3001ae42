"""What only a GPU can show: the same numbers there, no waiting, capture into a CUDA graph, half precision, memory."""

import copy
from collections.abc import Iterator

import pytest
import torch
from feature_rows import KINDS, activations_of, losses, plain_in_float64, tokens, weighted_gradients
from small_saes import make_sae, step_input

from benchmarks.contestants import CONTESTANTS, HSAE, PLAIN, Trained
from benchmarks.memory import peak_bytes
from benchmarks.plan import Size
from benchmarks.planted import plant
from sae_lens_hsae.sae.gpu_step.late_checks import LateChecks
from sae_lens_hsae.sae.structural_loss import families_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

SMALL = Size(64, (64, 128, 256, 512), 512, 8)


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Any wait of the host for the device is an error."""
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize("kind", KINDS)
def test_it_equals_the_plain_form_in_float64_on_the_cpu(kind: str) -> None:
    sae, x, expected, expected_grads = plain_in_float64(kind, 300)
    on_gpu = copy.deepcopy(sae).to("cuda")
    terms = losses(on_gpu, x.cuda(), activations_of(on_gpu, x.cuda()))
    grads = weighted_gradients(on_gpu, terms)
    torch.testing.assert_close(terms.cpu(), expected)
    for name, grad in expected_grads.items():
        torch.testing.assert_close(grads[name].cpu(), grad)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_half_precision_and_tf32_stay_near(kind: str, precision: str) -> None:
    _, x, expected, expected_grads = plain_in_float64(kind, 1000)
    single = make_sae(**KINDS[kind]).to("cuda")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
            terms = losses(single, x.float().cuda(), activations_of(single, x.float().cuda()))
        grads = weighted_gradients(single, terms)
    finally:
        torch.set_float32_matmul_precision(before)
    assert terms.dtype == torch.float32
    torch.testing.assert_close(terms.double().cpu(), expected, rtol=0.01, atol=0.01)
    for name, grad in expected_grads.items():
        assert (grads[name].cpu() - grad).norm() < 0.05 * grad.norm(), name


def test_activations_losses_and_gradients_become_one_cuda_graph() -> None:
    sae, x = make_sae().to("cuda"), tokens(torch.float32).cuda()
    families = families_of(sae.parents)

    def step() -> torch.Tensor:
        sae.zero_grad(set_to_none=False)
        acts = activations_of(sae, x)
        errors = x - acts.reconstruct(sae.W_dec, sae.b_dec)
        loss = errors.square().sum() + acts.l0().sum() + acts.structural_loss(sae.W_dec, families)
        loss.backward()
        return loss

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(tokens(torch.float32, seed=8))
    graph.replay()
    assert sae.W_dec.grad is not None
    replayed, replayed_grad = captured.clone(), sae.W_dec.grad.clone()
    expected = step()
    torch.testing.assert_close(replayed, expected)
    torch.testing.assert_close(replayed_grad, sae.W_dec.grad)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_pass_and_its_gradients_do_not_wait(kind: str, no_waiting: None) -> None:  # noqa: ARG001
    sae, x = make_sae(perturbation_rate=0.5, **KINDS[kind]).to("cuda"), tokens(torch.float32).cuda()
    dead = (torch.arange(33) % 5 == 0).cuda()
    for step in range(100):
        torch.cuda.set_sync_debug_mode("error" if step > 70 else "default")
        sae.training_forward_pass(step_input(x, dead)).loss.backward()


def test_a_trainers_step_does_not_wait(no_waiting: None) -> None:  # noqa: ARG001
    planted = plant(SMALL, "cuda")
    contestant = CONTESTANTS[HSAE](SMALL, planted)
    for step in range(12):
        torch.cuda.set_sync_debug_mode("error" if step > 4 else "default")
        contestant.step(planted.batches[step % len(planted.batches)])


def test_a_step_takes_less_memory_than_in_the_plain_form() -> None:
    size = Size(256, (512, 1024, 2048, 4096), 2048, 16, "bfloat16")
    planted = plant(size, "cuda")
    peaks = {}
    for name in (HSAE, PLAIN):

        def run(name: str = name) -> None:
            contestant = CONTESTANTS[name](size, planted)
            assert isinstance(contestant, Trained)
            for batch in planted.batches[:2]:
                contestant.step(batch)

        run()
        peaks[name] = peak_bytes(run, "cuda")
    assert peaks[HSAE] < peaks[PLAIN]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="torch sees no second CUDA device here")
def test_what_is_told_late_of_another_than_the_current_device_has_arrived() -> None:
    x = torch.full((8, 4), 3.0, device="cuda:1")
    busy = torch.rand(8000, 8000, device="cuda:1")
    for _ in range(20):
        busy = busy @ busy / 1e6
    checks = LateChecks()
    checks.send(1, x, torch.tensor(2.0, device="cuda:1"), torch.tensor([5], device="cuda:1"))
    assert checks.receive() == (1, 3.0, 2.0, (5,))
