"""Which failures of SAELens' own tests are explained."""

from release.host_tests import explanation


def test_a_failure_is_explained_by_a_pattern_of_the_tests_name():
    why = "every level has a b_dec of its own, and SAELens' SAEs have one"
    assert explanation("tests/test_sae.py::TestIt::test_sae_init[…]") == why
    assert explanation("tests/test_sae.py::test_weights_match_the_old_ones") == why
    assert explanation("tests/test_sae.py::test_one_bias[test_sae_init]") is None
