import numpy as np
import pytest

from mpcl.data.rare_class import RareClassSampler, class_probabilities


def test_probabilities_match_the_published_code_on_its_example():
    # The example of DAFormer's statistics: f = (150000, 5000, 300, 20000) / 175300 at T = 0.01.
    counts = np.zeros(19, dtype=np.int64)
    counts[[0, 1, 11, 13]] = [150000, 5000, 300, 20000]
    probabilities = class_probabilities(counts, 0.01)
    np.testing.assert_allclose(
        probabilities[[11, 1, 13, 0]], [0.935892, 0.064096, 1.23e-5, 7.7e-38], rtol=1e-2
    )
    np.testing.assert_allclose(probabilities[[11, 1]], [0.935892, 0.064096], atol=1e-6)
    assert probabilities.sum() == pytest.approx(1, abs=1e-12)


def test_absent_classes_have_no_probability_and_a_lone_class_has_all():
    assert class_probabilities(np.array([0, 7, 0]), 0.01).tolist() == [0, 1, 0]


def sampler(counts, fraction=0.1, temperature=1.0, size=(10, 10)):
    counts = np.array(counts)
    return RareClassSampler(counts, np.tile(size, (len(counts), 1)), temperature, fraction)


def test_a_file_at_the_threshold_does_not_qualify():
    files = sampler([[11, 0], [10, 0], [9, 91], [50, 50]]).candidates
    assert files[0].tolist() == [0, 3]
    assert files[1].tolist() == [2, 3]


def test_the_threshold_is_a_fraction_of_each_files_own_size():
    counts, sizes = np.array([[30, 1], [30, 1]]), np.array([[10, 10], [100, 100]])
    assert RareClassSampler(counts, sizes, 1.0, 0.1).candidates[0].tolist() == [0]


def test_a_class_below_the_threshold_everywhere_is_drawn_from_where_it_is_largest(caplog):
    drawn = sampler([[90, 2], [90, 8], [90, 5], [90, 0]])
    assert drawn.candidates[1].tolist() == [
        1,
        2,
    ]  # 8 and 5 of 8 pixels: at least half of the largest
    assert "[1]" in caplog.text


def test_draws_follow_the_probabilities_and_spread_evenly_over_the_files():
    drawn = sampler([[60, 0, 40], [100, 0, 0], [0, 0, 100]])
    rng = np.random.default_rng(0)
    draws = np.array([drawn.draw(rng) for _ in range(4000)])
    frequency = np.bincount(draws[:, 0], minlength=3) / len(draws)
    # Four standard deviations of a frequency over 4000 draws: at most 4 * 0.5 / 4000**0.5 = 0.032.
    np.testing.assert_allclose(frequency, drawn.probabilities, atol=0.032)
    assert frequency[1] == 0
    for rare_class, files in ((0, (0, 1)), (2, (0, 2))):
        of_class = draws[draws[:, 0] == rare_class, 1]
        assert set(of_class) == set(files)
        assert abs((of_class == files[0]).mean() - 0.5) < 4 * 0.5 / np.sqrt(len(of_class))
