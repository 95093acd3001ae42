"""The forest in training: when it is updated, from what, and when no more."""

import pytest
import reference
import torch
from forms import both_forms, one_form
from small_saes import at_step, make_sae, step_input

from sae_lens_hsae.forest.counts import Firing
from sae_lens_hsae.forest.parents import MEASURED_ON_ACTIVATIONS
from sae_lens_hsae.sae.recent_firing import RecentFiring

pytestmark = both_forms


def recent_of(sae) -> RecentFiring:
    assert sae.forest_updater.recent is not None
    return sae.forest_updater.recent


def shares_of_tokens(sae, above, below):
    """On which features of two levels fire together, (n_parents, n_children), and each feature alone, (n_features,)."""
    counts = recent_of(sae).counts()
    n_parents, n_children = above.stop - above.start, below.stop - below.start
    return counts.together(above, below)[slice(0, n_parents), torch.arange(n_children)], counts.frequency


def most_similar(sae, similarity):
    """The parent table by the reference, from the SAE's parameters as they are."""
    rows = {"encoder": sae.W_enc.T, "decoder": sae.W_dec}
    table = [-1] * sae.levels.widths[0]
    for above, below in sae.levels.boundaries:
        if similarity == "coactivation":
            together, _ = shares_of_tokens(sae, above, below)
            matrix = torch.where(together > 0, together, -torch.inf)
        elif similarity == "conditional":
            together, fires = shares_of_tokens(sae, above, below)
            n_firings = fires[below] * recent_of(sae).counts().n_tokens
            raised = reference.lower_end(together / fires[below], n_firings) - 2 * fires[above, None]
            matrix = torch.where((together > 0) & (fires[above, None] >= fires[below]), raised, -torch.inf)
        else:
            unit = torch.nn.functional.normalize(rows[similarity], dim=1)
            matrix = unit[above] @ unit[below].T
        chosen = reference.choose_parents(matrix.tolist(), 0.2)
        table += [parent + above.start if parent >= 0 else -1 for parent in chosen]
    return table


@pytest.mark.parametrize("similarity", ["encoder", "decoder", "coactivation", "conditional"])
def test_updates_follow_the_schedule_and_the_similarity(batch, similarity):
    sae = make_sae(hierarchy_similarity=similarity, hierarchy_first_update=2, hierarchy_update_every=5)
    sae.parents.fill_(-1)
    for step in range(11):
        before = sae.parents.clone()
        with torch.no_grad():
            sae.W_enc.copy_(torch.randn_like(sae.W_enc))
            sae.W_dec.copy_(torch.randn_like(sae.W_dec))
        sae.project_parameters()
        expected = most_similar(sae, similarity) if step else None
        sae.training_forward_pass(step_input(batch))
        if step in (2, 4, 5, 10):
            assert sae.parents.tolist() == expected
            changed = (sae.parents != before)[sae.levels.widths[0] :].float().mean()
            assert sae.forest_updater.reparented_share == changed
            assert changed > 0 or (similarity in MEASURED_ON_ACTIVATIONS and step == 4)  # nothing was counted since
        else:
            assert torch.equal(sae.parents, before)


@one_form
@pytest.mark.parametrize("similarity", ["encoder", "decoder", "coactivation"])
def test_mixed_precision_makes_the_forest_of_full_precision(batch, similarity):
    forests = []
    for enabled in (False, True):
        sae = at_step(make_sae(level_widths=[64, 128, 256], hierarchy_similarity=similarity), 100)
        if similarity == "coactivation":
            fired = torch.rand(448, 997, generator=torch.Generator().manual_seed(0)) < 0.2
            recent_of(sae).count(Firing.of(fired, 99))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            sae.training_forward_pass(step_input(batch))
        forests.append(sae.forest)
    assert forests[0] == forests[1]


def test_every_fourth_batch_is_counted(batch):
    sae = make_sae(hierarchy_similarity="conditional", perturbation_rate=0.0)
    batches = (batch, -batch, 2 * batch, batch + 1, 1 - batch)
    acts = [sae.training_forward_pass(step_input(x)).feature_acts > 0 for x in batches]
    assert [counted.step for counted in recent_of(sae).unpacked()] == [4]  # the newest third of five steps
    recent_of(sae).count(Firing.of(acts[0].T, 4))
    fired = torch.cat([acts[4], acts[0]]).double()
    for above, below in sae.levels.boundaries:
        together, frequency = shares_of_tokens(sae, above, below)
        torch.testing.assert_close(
            together.double(), fired[:, above].T @ fired[:, below] / len(fired), atol=1e-7, rtol=1e-5
        )
        torch.testing.assert_close(frequency.double(), fired.mean(0), atol=1e-7, rtol=1e-5)


@one_form
def test_a_frozen_forest_never_changes_again(batch):
    sae = make_sae(hierarchy_first_update=1, hierarchy_update_every=1, freeze_hierarchy_after=3)
    frozen = sae.parents
    for step in range(8):
        sae.training_forward_pass(step_input(batch))
        if step == 3:
            frozen = sae.parents.clone()
        with torch.no_grad():
            sae.W_enc.copy_(torch.randn_like(sae.W_enc))
    sae.finish_training()
    assert torch.equal(sae.parents, frozen)
